"""The one exception that a user may cause, and how it becomes one clear line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class LunaError(Exception):
    """Bad input: the message names the file, row or key, what was found there and what to do about it."""


def find_luna_error(error: BaseException) -> LunaError | None:
    """Find the :class:`LunaError` behind an exception.

    MONAI wraps what goes wrong inside a transform or a configured component into exceptions of its own, and a
    DataLoader sends the text of a worker's traceback; the cause that a user can act on is inside. That a GPU's memory
    does not suffice is such a cause too.

    Args:
        error: any exception.

    Returns:
        The first ``LunaError`` along the chain of causes, its message free of worker tracebacks, or None.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, LunaError):
            return LunaError(str(current).rsplit("LunaError: ", 1)[-1].strip())
        if type(current).__name__ == "OutOfMemoryError":  # torch's, which takes a second to import
            reason = ". ".join(str(current).split(". ")[:3])
            return LunaError(f"{reason}; set batch_size lower, or cache_on_device to false where it is true")
        seen.add(id(current))
        current = current.__cause__ or current.__context__
    return None


@contextmanager
def unwrapped_luna_errors() -> Iterator[None]:
    """Raise the :class:`LunaError` behind an exception that a library has wrapped; leave all others as they are."""
    try:
        yield
    except Exception as error:
        found = find_luna_error(error)
        if found is None:
            raise
        raise found from None


def install_one_line_errors() -> None:
    """Make this process end with one line instead of a traceback when a :class:`LunaError` is the cause.

    ``python -m monai.bundle`` has no place where a bundle could catch its own errors, so the bundle's ``initialize``
    step calls this. Every other exception is shown as before.
    """
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        found = find_luna_error(error)
        if found is None:
            previous(kind, error, traceback)
        else:
            sys.stderr.write(f"error: {found}\n")

    sys.excepthook = excepthook
