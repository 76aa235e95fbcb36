"""Writing files that are whole or not there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when all of it is on disk.

    It is written to a temporary name in the same folder (``.NAME.*.tmp``), flushed to disk and renamed when the block
    ends. When the block raises, the temporary file is removed and what was at ``path`` before stays as it was.

    Args:
        path: the final name.

    Yields:
        The open file.

    Raises:
        OSError: when the file can't be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
