"""What a model said about each sample of an epoch: the book's ``trnMetrics_g`` and ``valMetrics_g``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from monai.utils import evenly_divisible_all_gather

#: Columns of the table, in this order, and their types.
RECORD_COLUMNS = {"row": torch.int64, "class": torch.int64, "probability": torch.float32, "loss": torch.float32}


def gather_records(batches: Sequence[tuple[torch.Tensor, ...]]) -> pd.DataFrame:
    """Copy records to the host, those of all processes where training is distributed.

    Every process has to call this, and every process gets the whole table.

    Args:
        batches: of each batch the row in the candidate table, class, probability of class 1 and loss, each (N,).

    Returns:
        ``row`` and ``class`` (int64), ``probability`` and ``loss`` (float32): in order of arrival, those of one process
        after those of another.
    """
    columns = zip(*(batches or [(torch.empty(0),) * len(RECORD_COLUMNS)]), strict=True)
    return pd.DataFrame(
        {
            name: evenly_divisible_all_gather(torch.cat(values).to(dtype), concat=True).cpu().numpy()
            for (name, dtype), values in zip(RECORD_COLUMNS.items(), columns, strict=True)
        }
    )
