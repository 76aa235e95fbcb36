"""Classifying the candidates of a whole scan."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer

from luna_monai.transforms import CropCandidates


class PrepareScanBatch:
    """The ``prepare_batch`` of an evaluator over a :class:`~luna_monai.predictions.ScanDataset`.

    The scan stays on the CPU. :class:`CandidateInferer` moves the candidates to the device.
    """

    def __call__(self, batchdata: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the scan, no label, and the keyword argument ``centers`` of the inferer."""
        return batchdata["image"], None, (), {"centers": batchdata["centers"]}


@dataclass(eq=False)
class CandidateInferer(Inferer):
    """Runs a network on the candidates of a scan, as MONAI's ``SlidingWindowInferer`` does on windows of a grid.

    Args:
        spatial_size: shape of a candidate in voxels, z, y, x.
        batch_size: number of candidates that are cropped and classified at once.
        device: device of the network.
        preprocessing: applied to candidates (n, 1, *spatial_size) in HU, before they are moved to the device.
        inferer: runs the network on a batch.
        threads: number of threads of PyTorch on a CPU; by default the number when the inferer is created. A later
            number may be that of another call which is still running.
    """

    spatial_size: Sequence[int]
    batch_size: int
    device: str | torch.device = "cpu"
    preprocessing: Callable[[torch.Tensor], torch.Tensor] = field(default_factory=torch.nn.Identity)
    inferer: Inferer = field(default_factory=SimpleInferer)
    threads: int = field(default_factory=torch.get_num_threads)

    def __call__(
        self, inputs: torch.Tensor, network: Callable, *args: Any, centers: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Classify all candidates of a scan, or a batch of cropped candidates.

        Args:
            inputs: the scan on the CPU, (1, z, y, x) in HU, at least as large as a candidate. If ``centers`` is None,
                cropped candidates (n, 1, *spatial_size), for other programs that run MONAI bundles.
            network: maps candidates (n, 1, *spatial_size) to logits (n, 2).
            args: passed on to the network.
            centers: center voxels of the candidates in the scan, (n, 3), z, y, x.
            kwargs: passed on to the network.

        Returns:
            Logits (n, 2), float32, on the CPU.
        """
        cropper, candidates = CropCandidates(self.spatial_size), inputs if centers is None else centers
        # Each thread classifies its own candidates, because PyTorch's threads wait for each other after each layer.
        threads = self.threads if torch.device(self.device).type == "cpu" else 1
        parts = min(len(candidates), threads * math.ceil(len(candidates) / threads / self.batch_size))

        def classify(part: torch.Tensor) -> torch.Tensor:
            torch.set_num_threads(self.threads // threads)
            image = self.preprocessing(part.clone() if centers is None else cropper(inputs, part.numpy()))
            image = image.to(self.device).to(torch.float32, memory_format=torch.channels_last_3d)
            with torch.no_grad():
                return self.inferer(image, network, *args, **kwargs).float().cpu()

        logits = [torch.empty((0, 2))]
        try:
            with ThreadPoolExecutor(threads) as pool:
                logits += pool.map(classify, candidates.tensor_split(parts) if parts else ())
        finally:
            torch.set_num_threads(self.threads)
        return torch.cat(logits)
