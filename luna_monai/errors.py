"""The exception for bad input, and its message of one line."""

from __future__ import annotations

import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class LunaError(Exception):
    """Bad input: the message names the file, row or key, what was found there and what to do about it."""


def reason_of(error: BaseException) -> str:
    """Return the first sentence of what an exception says on one line, or its class where it says nothing."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return textwrap.shorten(text.partition(". ")[0].rstrip(":") or type(error).__name__, 300)


def find_luna_error(error: BaseException) -> LunaError | None:
    """Find what a user can act on behind an exception.

    MONAI wraps what goes wrong inside a transform or a configured component into exceptions of its own, and a
    DataLoader sends the text of a worker's traceback. Only explicit causes count: an exception that is raised while
    another one is handled is a fault of its own.

    Args:
        error: any exception.

    Returns:
        The first ``LunaError`` along the chain of causes, its message free of worker tracebacks; or one about a file
        that the system refuses, GPU memory that is used up, or a component of the configuration that cannot be made;
        else None.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, LunaError):
            return LunaError(str(current).rsplit("LunaError: ", 1)[-1].strip())
        if type(current).__name__ == "OutOfMemoryError":  # torch's, which takes a second to import
            reason = ". ".join(str(current).split(". ")[:3])
            return LunaError(f"{reason}; set batch_size lower")
        if isinstance(current, OSError) and current.filename:
            return LunaError(f"{current.filename}: {current.strerror}")
        current = current.__cause__
    return _component_error(error)


def _component_error(error: BaseException) -> LunaError | None:
    """Name the key, the class and the reason where MONAI could not make a part of a configuration."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    resolving = [frame.f_locals for frame in frames if frame.f_code.co_name == "_resolve_one_item"]
    if not resolving:
        return None
    key, item = resolving[-1]["id"].replace("::", "#"), resolving[-1].get("item")
    config = getattr(item, "config", None)
    is_step = re.fullmatch(r"\w+#\d+", key) and isinstance(config, str)
    if is_step and error.__cause__ is not None:  # a step of the run failed while it ran
        return None
    target = f"{config['_target_']}: " if isinstance(config, dict) and "_target_" in config else ""
    reason = (isinstance(error, RuntimeError) and error.__cause__) or error
    kind = "" if isinstance(reason, ValueError | RuntimeError) else f"{type(reason).__name__}: "
    text = textwrap.shorten(str(reason) or "no reason given", 400).replace("::", "#")
    return LunaError(f"{key}: {target}{kind}{text}")


@contextmanager
def unwrapped_luna_errors() -> Iterator[None]:
    """Raise the :class:`LunaError` behind an exception that a library has wrapped; leave all others as they are."""
    try:
        yield
    except Exception as error:
        found = find_luna_error(error)
        if found is None or found is error:
            raise
        raise found from error


def install_one_line_errors() -> None:
    """Make this process end with one line instead of a traceback when a :class:`LunaError` is the cause.

    ``python -m monai.bundle`` has no place where a bundle could catch its own errors, so the bundle's ``initialize``
    step calls this. Every other exception is shown as before.
    """
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = find_luna_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            sys.stderr.write(f"error: {found}\n")

    sys.excepthook = excepthook
