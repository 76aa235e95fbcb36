"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from luna_monai.errors import LunaError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when all of it is on disk.

    It is written to a temporary name in the same folder (``.NAME.*.tmp``), flushed to disk and renamed when the block
    ends. When the block raises, the temporary file is removed and what was at ``path`` before stays as it was.

    Args:
        path: the final name; its folder is made.

    Yields:
        The open file.

    Raises:
        OSError: when the file can't be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a whole file; see :func:`atomic_write`.

    Args:
        path: the file; its folder is made.
        content: what to write.

    Raises:
        LunaError: when the disk is full or the folder can't be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise LunaError(
            f"{path}: can't be written ({error.strerror or error}); free some space, or choose another folder"
        ) from error


def write_json(path: str | Path, content: Mapping[str, Any], *, indent: int = 4) -> None:
    """Write a whole JSON file; see :func:`write_bytes`.

    Args:
        path: the file; its folder is made.
        content: what to write; JSON knows no NaN and no infinity.
        indent: of each level, spaces.

    Raises:
        LunaError: when the disk is full or the folder can't be written.
        ValueError: when a number is not finite.
    """
    write_bytes(path, (json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, by which weights are known.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        LunaError: when it can't be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise LunaError(f"{path}: no such file") from None
    except OSError as error:
        raise LunaError(f"{path}: can't be read ({error.strerror or error})") from None


def readable_size(count: float) -> str:
    """Write a number of bytes for people.

    Args:
        count: bytes.

    Returns:
        Three digits and a unit, such as ``81.3 GB``.
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
