"""Tensors and tables in files that are there whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from luna_monai.files import write_bytes


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save`` to a file that is there whole or not at all; see :func:`~luna_monai.files.write_bytes`."""
    # Into memory first: on a full disk torch.save itself fails with a RuntimeError that does not name the cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, undefined values empty, whole or not at all; see :func:`~luna_monai.files.write_bytes`."""
    write_bytes(path, table.to_csv(index=False).encode())
