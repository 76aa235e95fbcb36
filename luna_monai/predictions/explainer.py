"""Where in a candidate the network sees a nodule."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.visualize import GradCAM, OcclusionSensitivity
from torch import nn

from luna_monai.errors import LunaError

#: From fine to coarse. A voxel of the feature maps has seen 5, 14 and 32 voxels of a candidate in each direction: the
#: first know best where, the last know best what, and alone may be 15 mm beside it.
TARGET_LAYERS = ("block1.relu2", "block2.relu2", "block3.relu2")
METHODS = ("grad_cam", "occlusion")
#: In HU: what is put in the place of what is hidden from the network.
AIR = -1000.0


class VoxelwiseGradCAM(GradCAM):
    """MONAI's ``GradCAM`` with a weight for each voxel of a feature map instead of one for the whole map: HiResCAM.

    Grad-CAM averages the gradients over a feature map, which is right for networks that pool their last feature maps
    globally. ``LunaModel`` flattens them, so that a feature counts differently at each place, and the average says
    nothing about where.

    Reference:
        R. L. Draelos, L. Carin: Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural
        networks. arXiv:2011.08891, 2020.
    """

    def compute_map(
        self,
        x: torch.Tensor,
        class_idx: int | None = None,
        retain_graph: bool = False,
        layer_idx: int = -1,
        **kwargs: Any,
    ) -> torch.Tensor:
        _, activation, gradient = self.nn_module(x, class_idx=class_idx, retain_graph=retain_graph, **kwargs)
        return F.relu((gradient[layer_idx] * activation[layer_idx]).sum(1, keepdim=True))


class CandidateExplainer:
    """Makes a heat map of each candidate: what in it speaks for a nodule, in log-odds.

    Args:
        network: gives logits (n, 2) for (n, 1, z, y, x) in HU; it is not changed.
        method: ``grad_cam``, the geometric mean of :class:`VoxelwiseGradCAM` at ``target_layers``, so that heat is
            where all of them have some, takes a forward and a backward pass for each; or ``occlusion``, MONAI's
            ``OcclusionSensitivity``, hides one place after the other behind air, takes some hundred forward passes and
            works with any network, exported ones included. It says nothing about a nodule of which each part alone may
            be missing.
        target_layers: names of the layers whose feature maps Grad-CAM looks at.
        mask_size: voxels z, y, x that occlusion hides at once.
        batch_size: candidates, or occluded copies of one, that go through the network at once.
        device: where the network runs.

    Raises:
        LunaError: when the method is not known, or the network has no such layer.
    """

    def __init__(
        self,
        network: nn.Module,
        method: str = "grad_cam",
        target_layers: Sequence[str] = TARGET_LAYERS,
        mask_size: tuple[int, int, int] = (8, 16, 16),
        batch_size: int = 16,
        device: str | torch.device = "cpu",
    ) -> None:
        if method not in METHODS:
            raise LunaError(f"explain_method must be {' or '.join(METHODS)}, found {method!r}")
        self.method = method
        self.batch_size = batch_size
        self.device = torch.device(device)
        if method == "grad_cam":
            layers = dict(network.named_modules())
            for name in target_layers:
                # The layers of a scripted network take no hooks.
                if isinstance(layers.get(name), (type(None), torch.jit.ScriptModule)):
                    raise LunaError(
                        f"explain_method grad_cam looks at the layer {name!r}, which these weights do not show; "
                        "use occlusion, which needs nothing but the network's answer"
                    )
            # A copy, for hooks stay in a network for ever.
            log_odds = _LogOdds(copy.deepcopy(network)).requires_grad_(True)
            names = [f"network.{name}" for name in target_layers]
            self._cams = [VoxelwiseGradCAM(log_odds, name, postprocessing=nn.Identity()) for name in names]
        else:
            # In HU above air, hidden voxels are multiplied by 0: what is hidden becomes air, with a soft edge.
            self._from_air = _LogOdds(network, offset=AIR)
            self._occlusion = OcclusionSensitivity(
                self._from_air,
                mask_size=mask_size,
                n_batch=batch_size,
                verbose=False,
                mode="gaussian",
                overlap=0.5,
                activate=False,
            )

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Explain candidates.

        Args:
            image: (n, 1, z, y, x), HU clipped as the network wants it.

        Returns:
            (n, z, y, x), float32 on the CPU: 0 where nothing speaks for a nodule, 1 where most does. All 0 where the
            candidate has nothing that does.
        """
        maps = [torch.empty((0, *image.shape[2:]))]
        for batch in image.split(self.batch_size if self.method == "grad_cam" else 1) if len(image) else ():
            batch = batch.to(self.device, torch.float32)
            maps.append((self._by_gradient(batch) if self.method == "grad_cam" else self._by_occlusion(batch)).cpu())
        heat = torch.cat(maps)
        strongest = heat.amax(dim=(1, 2, 3), keepdim=True)
        return torch.where(strongest > 0, heat / strongest, torch.zeros(()))

    def _by_gradient(self, image: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            maps = torch.stack([cam(image, class_idx=0)[:, 0].detach() for cam in self._cams])
        # Each by its own strength first, for the product of small numbers is none.
        maps = maps / maps.amax(dim=(2, 3, 4), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
        return maps.prod(dim=0).pow(1 / len(maps))

    @torch.no_grad()
    def _by_occlusion(self, image: torch.Tensor) -> torch.Tensor:
        above_air = image - AIR
        with warnings.catch_warnings():
            # MONAI 1.6.1 indexes with lists of slices, which torch has long frowned upon.
            warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing")
            occluded, _ = self._occlusion(above_air)
        return F.relu(self._from_air(above_air)[..., None, None] - torch.as_tensor(occluded)[:, 0])


class _LogOdds(nn.Module):
    """One number a candidate: the logit of a nodule less that of none."""

    def __init__(self, network: nn.Module, offset: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.offset = offset

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image + self.offset)
        return logits[:, 1:] - logits[:, :1]
