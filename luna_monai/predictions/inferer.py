"""Classifying the candidates of a whole scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer

from luna_monai.errors import LunaError
from luna_monai.training.progress import enumerate_with_estimate
from luna_monai.transforms import CropCandidates

#: A scan with more candidates than this shows how far it is.
MANY_CANDIDATES = 4000


class PrepareScanBatch:
    """The ``prepare_batch`` of an evaluator over a :class:`~luna_monai.predictions.ScanDataset`.

    The scan stays where it is; :class:`CandidateInferer` takes the candidates to the device.
    """

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None, tuple[()], dict[str, torch.Tensor]]:
        """Give the scan, no label, and the voxels of its candidates."""
        return batchdata["image"], None, (), {"centers": batchdata["centers"]}


class CandidateInferer(Inferer):
    """Runs a network on the candidates of a scan, as MONAI's ``SlidingWindowInferer`` does on windows of a grid.

    Args:
        spatial_size: voxels of a candidate, z, y, x.
        batch_size: candidates that are cut out and classified at once.
        device: where the network runs.
        preprocessing: of candidates (n, 1, *spatial_size) in HU, before they are taken to the device.
        inferer: runs the network on a batch; MONAI's ``SimpleInferer`` when None.
        memory_format: how the network wants its input laid out.

    Raises:
        LunaError: when ``batch_size`` is not positive.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        batch_size: int,
        device: str | torch.device = "cpu",
        preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
        inferer: Inferer | None = None,
        memory_format: torch.memory_format = torch.channels_last_3d,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise LunaError(f"batch_size must be at least 1, found {batch_size}")
        self.cropper = CropCandidates(spatial_size)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.preprocessing = preprocessing
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.memory_format = memory_format

    def __call__(
        self,
        inputs: torch.Tensor,
        network: Callable[..., torch.Tensor],
        *args: Any,
        centers: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Classify all candidates of a scan, or a batch of candidates that are cut out already.

        Args:
            inputs: the scan on the CPU, (1, z, y, x), at least as large as a candidate; or, without ``centers``,
                candidates (n, 1, *spatial_size), as other programs that run MONAI bundles have them.
            network: gives logits (n, 2) for (n, 1, *spatial_size).
            args: passed on to the network.
            centers: (n, 3) voxels z, y, x of the scan.
            kwargs: passed on to the network.

        Returns:
            Logits (n, 2), float32, on the CPU.
        """
        logits = [torch.empty((0, 2))]
        batches = (inputs if centers is None else centers).split(self.batch_size)
        many = len(batches) * self.batch_size > MANY_CANDIDATES
        for _, batch in enumerate_with_estimate(batches, "Candidates, batches of") if many else enumerate(batches):
            if not len(batch):
                continue
            image = batch if centers is None else self.cropper(inputs, batch.numpy())
            if self.preprocessing is not None:
                image = self.preprocessing(image)
            image = image.to(self.device).to(torch.float32, memory_format=self.memory_format)
            logits.append(self.inferer(image, network, *args, **kwargs).float().cpu())
        return torch.cat(logits)
