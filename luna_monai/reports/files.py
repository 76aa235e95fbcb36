"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from luna_monai.errors import LunaError


def replace_file(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then give it its own name.

    Args:
        path: the file; what was there before stays until the new content is complete.
        content: what it shall hold.

    Raises:
        LunaError: when the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise LunaError(
            f"{path}: cannot be written ({error.strerror}); choose another place or free disk space"
        ) from None
