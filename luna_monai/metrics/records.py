"""What a model said about each sample of an epoch: the book's ``trnMetrics_g`` and ``valMetrics_g``."""

from __future__ import annotations

import pandas as pd
import torch
from monai.utils import evenly_divisible_all_gather

#: Columns of the table, in this order, and their types.
RECORD_COLUMNS = {"row": torch.int64, "class": torch.int64, "probability": torch.float32, "loss": torch.float32}


class CandidateRecords:
    """Collects row, class, probability and loss of every sample, without waiting for the device.

    Args:
        drop_duplicates: keep only the first record of a row. A distributed validation sampler repeats samples to give
            every process as many; a training sampler may mean it.
    """

    def __init__(self, drop_duplicates: bool = False) -> None:
        self.drop_duplicates = drop_duplicates
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def reset(self) -> None:
        """Forget all records."""
        self._batches = []

    def append(self, row: torch.Tensor, label: torch.Tensor, probability: torch.Tensor, loss: torch.Tensor) -> None:
        """Add the samples of one batch; the tensors stay where they are.

        Args:
            row: (N,) index of each sample in the candidate table.
            label: (N,) class, 0 or 1.
            probability: (N,) probability of class 1.
            loss: (N,) loss.
        """
        self._batches.append(tuple(values.detach() for values in (row, label, probability, loss)))

    def to_frame(self) -> pd.DataFrame:
        """Copy the records to the host, those of all processes where training is distributed.

        Every process has to call this, and every process gets the whole table.

        Returns:
            ``row`` and ``class`` (int64), ``probability`` and ``loss`` (float32): in order of arrival, those of one
            process after those of another.
        """
        batches = self._batches or [tuple(torch.empty(0) for _ in RECORD_COLUMNS)]
        arrays = {}
        for (name, dtype), values in zip(RECORD_COLUMNS.items(), zip(*batches, strict=True), strict=True):
            arrays[name] = evenly_divisible_all_gather(torch.cat(values).to(dtype), concat=True).cpu().numpy()
        frame = pd.DataFrame(arrays)
        if self.drop_duplicates:
            frame = frame.drop_duplicates("row", ignore_index=True)
        return frame
