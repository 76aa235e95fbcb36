"""Attribution maps: the voxels of a candidate that contribute to the probability of a nodule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from torch import nn

from luna_monai.errors import LunaError
from luna_monai.predictions.outputs import VOLUMES, check_file, in_file_order, write_volume
from luna_monai.predictions.result import ScanPrediction, nearest_voxels
from luna_monai.scans.geometry import Geometry
from luna_monai.transforms.crop import CropCandidates, window_start

#: From fine to coarse. A voxel of the feature maps has seen 5, 14 and 32 voxels of a candidate in each direction: the
#: first know best where, the last know best what, and alone may be 15 mm beside it.
TARGET_LAYERS = ("block1.relu2", "block2.relu2", "block3.relu2")


class VoxelwiseGradCAM(GradCAM):
    """MONAI's ``GradCAM`` with a weight for each voxel of a feature map instead of one for the whole map: HiResCAM.

    Grad-CAM averages the gradients over a feature map, which is right for networks that pool their last feature maps
    globally. ``LunaModel`` flattens them, so that a feature counts differently at each place, and the average says
    nothing about where.

    Reference:
        R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
        networks. arXiv:2011.08891, 2020.
    """

    def compute_map(self, x: torch.Tensor, layer_idx: int = -1, **kwargs: Any) -> torch.Tensor:
        _, activation, gradient = self.nn_module(x, **kwargs)
        return F.relu((gradient[layer_idx] * activation[layer_idx]).sum(1, keepdim=True))


class CandidateExplainer:
    """Makes the attribution map of candidates: the geometric mean of :class:`VoxelwiseGradCAM` at several layers.

    Args:
        network: gives logits (n, 2) for (n, 1, z, y, x) in HU; it is not changed.
        target_layers: names of the layers.
        device: where the network runs.

    Raises:
        LunaError: when the network does not have these layers, as exported ones.
    """

    def __init__(
        self, network: nn.Module, target_layers: Sequence[str] = TARGET_LAYERS, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        layers = dict(network.named_modules())
        for name in target_layers:
            # The layers of a scripted network take no hooks.
            if isinstance(layers.get(name), (type(None), torch.jit.ScriptModule)):
                raise LunaError(f"--explain needs the layer {name!r} of LunaModel; these weights are exported")
        # Log-odds: the logit of a nodule less that of none. A copy, because hooks stay in a network.
        difference = nn.Linear(2, 1, bias=False)
        difference.weight.data = torch.tensor([[-1.0, 1.0]])
        log_odds = nn.Sequential(copy.deepcopy(network), difference.to(self.device)).requires_grad_(True)
        self._cams = [VoxelwiseGradCAM(log_odds, f"0.{name}", postprocessing=nn.Identity()) for name in target_layers]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Explain candidates.

        Args:
            image: (n, 1, z, y, x), HU clipped as the network wants it.

        Returns:
            (n, z, y, x), float32 on the CPU: 0 without evidence of a nodule, 1 at the strongest of each candidate.
        """
        heat = [torch.zeros((0, *image.shape[2:]))]
        for candidate in image:
            batch = candidate[None].to(self.device, torch.float32)
            with torch.enable_grad():
                maps = torch.stack([cam(batch, class_idx=0)[:, 0].detach() for cam in self._cams])
            # Each by its own strength first, because the product of small numbers underflows.
            heat.append(_by_strongest(_by_strongest(maps).prod(dim=0).pow(1 / len(maps))).cpu())
        return torch.cat(heat)


def _by_strongest(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax((-3, -2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass
class ScanExplanation:
    """Writes the attribution maps of the most probable findings of a scan into one volume that lies over the scan.

    Args:
        path: the NIfTI or NRRD file.
        explainer: gives maps (n, z, y, x) from 0 to 1 for candidates (n, 1, z, y, x).
        max_findings: how many findings are explained.
        spatial_size: voxels of a candidate, z, y, x.
        preprocessing: of candidates, before the network sees them.

    Raises:
        LunaError: when the name of the file has another ending, or it cannot be written.
    """

    path: str | Path
    explainer: Callable[[torch.Tensor], torch.Tensor]
    max_findings: int = 5
    spatial_size: Sequence[int] = (32, 48, 48)
    preprocessing: Callable[[torch.Tensor], torch.Tensor] = field(default_factory=nn.Identity)

    def __post_init__(self) -> None:
        check_file(Path(self.path), VOLUMES)

    def __call__(self, prediction: ScanPrediction, image: torch.Tensor, grid: Geometry) -> np.ndarray:
        """Explain the scan and write the file.

        Args:
            prediction: of the scan.
            image: the scan as the network sees it, (1, z, y, x) in HU.
            grid: of ``image``.

        Returns:
            uint8 (z, y, x) in the grid of ``image``: 0, or up to 255 at the strongest of a finding; the higher value
            where findings overlap.

        Raises:
            LunaError: when the file cannot be written.
        """
        centers = nearest_voxels(grid, [finding.position for finding in prediction.findings[: self.max_findings]])
        heat = self.explainer(self.preprocessing(CropCandidates(self.spatial_size)(image, centers))).numpy()
        values = np.zeros(grid.shape, dtype=np.uint8)
        for block, center in zip(heat, centers.tolist(), strict=True):
            starts = [window_start(*axis) for axis in zip(center, block.shape, grid.shape, strict=True)]
            place = values[tuple(slice(a, a + n) for a, n in zip(starts, block.shape, strict=True))]
            np.maximum(place, np.rint(block * 255).astype(np.uint8), out=place)
        write_volume(Path(self.path), in_file_order(values, prediction))
        return values
