"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from luna_monai.errors import LunaError, reason_of

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a submission to LUNA16.
SUBMISSION_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".luna.tmp"
_NEW_S = 0.1  # a file as new as this may be between being made and being locked


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when all of it is on disk.

    It is written to a temporary name in the same folder (``.NAME.*.luna.tmp``), flushed to disk and renamed when the
    block ends. When the block raises, the temporary file is removed and what was at ``path`` before stays as it was.
    What a killed process leaves is removed by :func:`remove_abandoned`.

    Args:
        path: the final name; its folder is made.

    Yields:
        The open file.

    Raises:
        OSError: when the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # a file system without locks
                lock(file, wait=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # before the lock ends; Windows renames closed files only
                temporary.replace(path)
        if fcntl is None:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def abandoned_files(folder: str | Path) -> list[Path]:
    """List the temporary files of :func:`atomic_write` in a folder whose processes have ended."""
    found = []
    for path in sorted(Path(folder).glob(f".*{_TEMPORARY}")):
        # A file that is written to is locked, by processes of other machines too; Windows does not remove open files.
        with suppress(OSError), path.open("r+b") as file:
            lock(file, wait=False)
            if time.time() - path.stat().st_mtime > _NEW_S:
                found.append(path)
    return found


def remove_abandoned(folder: str | Path) -> None:
    """Remove the temporary files of :func:`atomic_write` in a folder whose processes have ended."""
    for path in abandoned_files(folder):
        with suppress(OSError):
            path.unlink()


def lock(file: BinaryIO | int, *, wait: bool) -> None:
    """Lock an open file until it is closed, or its process ends; nothing happens on Windows.

    Args:
        file: the file, or its descriptor.
        wait: wait for another process that holds the lock.

    Raises:
        BlockingIOError: when another process holds the lock.
        OSError: when the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def file_name_of(text: str) -> str:
    """Turn a text, such as a series UID, into a part of a file name that every system takes.

    Args:
        text: a character that file names cannot hold becomes ``%`` and its number, as in web addresses. From 72 bytes
            the end is replaced by a hash. Different texts stay different.
    """
    name = re.sub(r'^\.|[. ]$|[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", text)
    content = os.fsencode(name)
    if len(content) < 72:
        return name
    return f"{content[:48].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Raise what the disk says while a file or folder is written as a :class:`LunaError` that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer turns what the disk said into a RuntimeError of its own.
        disk = error.__context__ if isinstance(error.__context__, OSError) else error
        advice = "free some space, or choose another folder"
        raise LunaError(f"{path}: cannot be written ({reason_of(disk)}); {advice}") from error


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a whole file; see :func:`atomic_write`.

    Args:
        path: the file; its folder is made.
        content: what to write.

    Raises:
        LunaError: when the disk is full or the folder cannot be written.
    """
    with write_errors(path), atomic_write(path) as file:
        file.write(content)


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a whole file with ``torch.save``; see :func:`write_bytes`."""
    import torch

    with write_errors(path), atomic_write(path) as file:
        torch.save(content, file)


def write_json(path: str | Path, content: Mapping[str, Any], *, indent: int = 4) -> None:
    """Write a whole JSON file; see :func:`write_bytes`.

    Args:
        path: the file; its folder is made.
        content: mappings, lists, NumPy scalars and arrays; NaN and infinity, which JSON does not have, become null.
        indent: of each level, spaces.

    Raises:
        LunaError: when the disk is full or the folder cannot be written.
    """
    text = json.dumps(_for_json(content), indent=indent, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _for_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(each) for each in value]
    if hasattr(value, "tolist"):  # of NumPy, which this module does without
        return _for_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a whole CSV file of a table's columns, undefined values empty; see :func:`write_bytes`."""
    write_bytes(path, table.to_csv(index=False).encode())


def write_submission(path: str | Path, table: pd.DataFrame) -> None:
    """Write candidates in LUNA16's form, in the order of the table; see :func:`write_bytes`.

    Args:
        path: the CSV file; its folder is made.
        table: ``SUBMISSION_COLUMNS`` and any others.
    """
    write_table(path, table[list(SUBMISSION_COLUMNS)])


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, by which weights are known.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
