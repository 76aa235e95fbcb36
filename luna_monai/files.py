"""Atomic writing of files, and file names."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
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
_NEW_S = 0.1  # a younger file may have been created but not locked yet


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    The content is written to a temporary file in the same folder (``.NAME.*.luna.tmp``), which is flushed to disk and
    renamed when the block ends. If the block raises, the temporary file is removed, and an existing file at ``path``
    does not change. :func:`remove_abandoned` removes temporary files of killed processes.

    Args:
        path: the final name; its folder is created if it is missing.

    Yields:
        The open file.

    Raises:
        OSError: when the file cannot be written.
    """
    path = Path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # the file system may not support locks
                lock(file, wait=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if fcntl is not None:  # while the file is locked; Windows can rename closed files only
                temporary.replace(path)
        if fcntl is None:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def abandoned_files(folder: str | Path) -> list[Path]:
    """List the temporary files of :func:`atomic_write` in a folder that ended processes have left behind."""
    found = []
    for path in sorted(Path(folder).glob(f".*{_TEMPORARY}")):
        # A process, on this or another machine, locks the file that it writes. Windows does not remove open files.
        with suppress(OSError), path.open("r+b") as file:
            lock(file, wait=False)
            if time.time() - path.stat().st_mtime > _NEW_S:
                found.append(path)
    return found


def remove_abandoned(folder: str | Path) -> None:
    """Remove the temporary files of :func:`atomic_write` in a folder that ended processes have left behind."""
    for path in abandoned_files(folder):
        with suppress(OSError):
            path.unlink()


def lock(file: BinaryIO | int, *, wait: bool) -> None:
    """Lock an open file until it is closed or the process ends. On Windows this does nothing.

    Args:
        file: the file, or its descriptor.
        wait: whether to wait while another process holds the lock.

    Raises:
        BlockingIOError: when another process holds the lock and ``wait`` is False.
        OSError: when the file system does not support locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def file_name_of(text: str) -> str:
    """Turn a text, such as a series UID, into part of a file name that is valid on every operating system.

    Args:
        text: any text.

    Returns:
        The text, with percent-encoding for characters that file names cannot contain. If the result has 72 bytes or
        more, a hash replaces its end. Different texts give different results.
    """
    name = re.sub(r'^\.|[. ]$|[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", text)
    content = os.fsencode(name)
    if len(content) < 72:
        return name
    return f"{content[:48].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


def ending_of(path: Path, endings: Iterable[str]) -> str:
    """Find the ending of a file name.

    Args:
        path: the file.
        endings: the endings that are allowed.

    Returns:
        The longest matching ending.

    Raises:
        LunaError: if no ending matches.
    """
    name = path.name.lower()
    for ending in sorted(endings, key=len, reverse=True):
        if name.endswith(ending) and name != ending:
            return ending
    raise LunaError(f"{path}: the file name must end with {' or '.join(endings)}")


def check_file(path: str | Path, endings: Iterable[str]) -> None:
    """Check that an output file can be written.

    Args:
        path: the file.
        endings: the endings that are allowed.

    Raises:
        LunaError: if the name has another ending, the path is a folder, or its folder is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise LunaError(f"{path}: is a folder; give the name of a file")
    ending_of(path, endings)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LunaError(f"{path}: cannot write to the folder {folder} ({error.strerror})") from None


@contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of the disk while a file or folder is written into a :class:`LunaError` that names the path."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError while it handles the error of the disk.
        disk = error.__context__ if isinstance(error.__context__, OSError) else error
        advice = "free some space, or choose another folder"
        raise LunaError(f"{path}: cannot be written ({reason_of(disk)}); {advice}") from error


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file atomically; see :func:`atomic_write`.

    Args:
        path: the file; its folder is created if it is missing.
        content: the bytes to write.

    Raises:
        LunaError: when the disk is full or the folder cannot be written.
    """
    with write_errors(path), atomic_write(path) as file:
        file.write(content)


def write_tensors(path: str | Path, content: Any) -> None:
    """Write a file atomically with ``torch.save``; see :func:`write_bytes`."""
    import torch

    with write_errors(path), atomic_write(path) as file:
        torch.save(content, file)


def write_json(path: str | Path, content: Mapping[str, Any], *, indent: int = 4) -> None:
    """Write a JSON file atomically; see :func:`write_bytes`.

    Args:
        path: the file; its folder is created if it is missing.
        content: mappings, lists, NumPy scalars and arrays. NaN and infinity, which JSON does not support, become null.
        indent: number of spaces per level.

    Raises:
        LunaError: when the disk is full or the folder cannot be written.
    """
    text = json.dumps(_for_json(content), indent=indent, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode(errors="replace"))


def _for_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _for_json(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays; this module does not import NumPy
        return _for_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as a CSV file atomically, with empty fields for undefined values; see :func:`write_bytes`."""
    write_bytes(path, table.to_csv(index=False).encode())


def write_submission(path: str | Path, table: pd.DataFrame) -> None:
    """Write candidates in LUNA16's submission format, in the order of the table; see :func:`write_bytes`.

    Args:
        path: the CSV file; its folder is created if it is missing.
        table: has the columns ``SUBMISSION_COLUMNS``; other columns are not written.
    """
    write_table(path, table[list(SUBMISSION_COLUMNS)])


def sha256_of(path: str | Path) -> str:
    """Compute the SHA-256 of a file, which identifies weights.

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
    """Format a number of bytes for display.

    Args:
        count: number of bytes.

    Returns:
        Three significant digits and a unit, such as ``81.3 GB``.
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
