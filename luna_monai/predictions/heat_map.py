"""Attribution maps: the voxels of a candidate that contribute to the probability of a nodule."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.visualize import GradCAM
from scipy import ndimage
from torch import nn

from luna_monai.errors import LunaError
from luna_monai.files import check_file
from luna_monai.predictions.outputs import VOLUMES, in_file_order, write_volume
from luna_monai.predictions.result import ScanPrediction, nearest_voxels
from luna_monai.scans.geometry import Geometry
from luna_monai.transforms.crop import CropCandidates, window_start

#: Layers from fine to coarse, with receptive fields of 5, 14 and 32 voxels. The first layers localize best. The last
#: layers discriminate best, but their maxima alone may be 15 mm away from the nodule. These are the values before the
#: pooling and ReLU of a block; where ReLU gives zero, their gradients are zero, too.
TARGET_LAYERS = ("block1.norm2", "block2.norm2", "block3.norm2")


class VoxelwiseGradCAM(GradCAM):
    """HiResCAM: MONAI's ``GradCAM`` with a weight for each voxel of a feature map instead of one per feature map.

    Grad-CAM averages the gradients over a feature map, which suits networks with global average pooling. ``LunaModel``
    flattens its last feature maps, so that the weight of a feature depends on its position, which the average loses.

    Reference:
        R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
        networks. arXiv:2011.08891, 2020.
    """

    def compute_map(self, x: torch.Tensor, layer_idx: int = -1, **kwargs: Any) -> torch.Tensor:
        _, activation, gradient = self.nn_module(x, **kwargs)
        return F.relu((gradient[layer_idx] * activation[layer_idx]).sum(1, keepdim=True))


class CandidateExplainer:
    """Computes attribution maps of candidates: the geometric mean of :class:`VoxelwiseGradCAM` over several layers.

    Args:
        network: maps (n, 1, z, y, x) in HU to logits (n, 2). It is copied, not changed.
        target_layers: names of the layers.
        device: device of the network.

    Raises:
        LunaError: if the network does not have these layers. Exported networks do not.
    """

    def __init__(
        self, network: nn.Module, target_layers: Sequence[str] = TARGET_LAYERS, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        network = getattr(network, "network", network)  # of FlipAverage: the map is that of the candidate as it is
        layers = dict(network.named_modules())
        for name in target_layers:
            # Scripted layers do not support hooks.
            if isinstance(layers.get(name), (type(None), torch.jit.ScriptModule)):
                raise LunaError(f"--explain needs the layer {name!r} of LunaModel; give weights as .pt or .state")
        # The log-odds are the difference of the logits. The network is copied because the hooks are not removed.
        difference = nn.Linear(2, 1, bias=False)
        difference.weight.data = torch.tensor([[-1.0, 1.0]])
        log_odds = nn.Sequential(copy.deepcopy(network), difference.to(self.device)).requires_grad_(True)
        self._cams = [VoxelwiseGradCAM(log_odds, f"0.{name}", postprocessing=nn.Identity()) for name in target_layers]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Compute the attribution maps of candidates.

        Args:
            image: candidates after preprocessing, (n, 1, z, y, x) in HU.

        Returns:
            Maps (n, z, y, x), float32 on the CPU: 0 for no contribution to a nodule, 1 at the maximum of each map.
        """
        heat = [torch.zeros((0, *image.shape[2:]))]
        for candidate in image:
            batch = candidate[None].to(self.device, torch.float32)
            with torch.enable_grad():
                maps = torch.stack([cam(batch, class_idx=0)[:, 0].detach() for cam in self._cams])
            # Normalize each map first, because the product of small numbers underflows.
            heat.append(_divided_by_maximum(_divided_by_maximum(maps).prod(dim=0).pow(1 / len(maps))).cpu())
        return torch.cat(heat)


def _divided_by_maximum(maps: torch.Tensor) -> torch.Tensor:
    return maps / maps.amax((-3, -2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


@dataclass
class ScanExplanation:
    """Writes the attribution maps of the most probable findings of a scan to one volume in the space of the scan.

    Args:
        path: the NIfTI or NRRD file.
        explainer: maps candidates (n, 1, z, y, x) to attribution maps (n, z, y, x) from 0 to 1.
        max_findings: largest number of findings with an attribution map.
        spatial_size: shape of a candidate in voxels, z, y, x.
        smoothing_mm: standard deviation of the Gaussian that smooths each map, mm. Unsmoothed maps are hardly visible.
        preprocessing: applied to candidates before ``explainer``.

    Raises:
        LunaError: if the file name has another ending, or the file cannot be written.
    """

    path: str | Path
    explainer: Callable[[torch.Tensor], torch.Tensor]
    max_findings: int = 5
    spatial_size: Sequence[int] = (32, 48, 48)
    smoothing_mm: float = 1.5
    preprocessing: Callable[[torch.Tensor], torch.Tensor] = field(default_factory=nn.Identity)

    def __post_init__(self) -> None:
        check_file(self.path, VOLUMES)

    def __call__(self, prediction: ScanPrediction, image: torch.Tensor, grid: Geometry) -> np.ndarray:
        """Compute the attribution maps of the scan and write the file.

        Args:
            prediction: prediction for the scan.
            image: the scan in the orientation of the network, (1, z, y, x) in HU.
            grid: geometry of ``image``.

        Returns:
            Volume in the grid of ``image``, uint8 (z, y, x), with a maximum of 255 in each finding and 0 outside. The
            higher value is used where findings overlap.

        Raises:
            LunaError: if the file cannot be written.
        """
        centers = nearest_voxels(grid, [finding.position for finding in prediction.findings[: self.max_findings]])
        heat = self.explainer(self.preprocessing(CropCandidates(self.spatial_size)(image, centers)))
        smooth = ndimage.gaussian_filter(heat.numpy(), (0, *np.divide(self.smoothing_mm, grid.spacing[::-1])))
        smooth = _divided_by_maximum(torch.from_numpy(smooth)).numpy()
        values = np.zeros(grid.shape, dtype=np.uint8)
        for block, center in zip(smooth, centers.tolist(), strict=True):
            starts = [window_start(*axis) for axis in zip(center, block.shape, grid.shape, strict=True)]
            place = values[tuple(slice(a, a + n) for a, n in zip(starts, block.shape, strict=True))]
            np.maximum(place, np.rint(block * 255).astype(np.uint8), out=place)
        write_volume(Path(self.path), in_file_order(values, prediction))
        return values
