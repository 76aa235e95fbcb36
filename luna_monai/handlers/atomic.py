"""Files that are there whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from luna_monai.errors import LunaError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, onto the disk, then give it its name.

    Args:
        path: the file; its folder is made.
        content: what to write.

    Raises:
        LunaError: when the disk is full or the folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LunaError(
            f"{path}: can't be written ({error.strerror or error}); free some space, or choose another output_dir"
        ) from error


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save`` to a file that is there whole or not at all; see :func:`write_bytes`."""
    # Into memory first: on a full disk torch.save itself fails with a RuntimeError that does not name the cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, undefined values empty, that is there whole or not at all; see :func:`write_bytes`."""
    write_bytes(path, table.to_csv(index=False).encode())
