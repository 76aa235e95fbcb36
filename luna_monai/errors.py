"""The exception for bad input, and its one-line message."""

import re
import sys
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class LunaError(Exception):
    """Bad input. The message names the file, row or key, what was found there and what to do."""


def reason_of(error: BaseException) -> str:
    """Return the first sentence of an exception's message on one line, or its class name if the message is empty."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return textwrap.shorten(text.partition(". ")[0].rstrip(":") or type(error).__name__, 300)


def find_luna_error(error: BaseException) -> LunaError | None:
    """Find the error behind an exception that a user can act on.

    MONAI wraps errors of transforms and configured components in its own exceptions, and a DataLoader passes on the
    traceback of a worker as text. Only explicit causes count: an exception that is raised while another one is handled
    is a separate error.

    Args:
        error: any exception.

    Returns:
        The first ``LunaError`` in the chain of causes, without worker tracebacks in its message; or a new one for a
        file error of the operating system, for exhausted GPU memory, or for a component of the configuration that
        cannot be created; else None.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, LunaError):
            return LunaError(str(current).rsplit("LunaError: ", 1)[-1].strip())
        if type(current).__name__ == "OutOfMemoryError":  # by name, because importing torch takes a second
            return LunaError(". ".join(str(current).split(". ")[:3]) + "; reduce batch_size")
        if isinstance(current, OSError) and current.filename:
            return LunaError(f"{current.filename}: {current.strerror}")
        current = current.__cause__
    return _component_error(error)


def _component_error(error: BaseException) -> LunaError | None:
    """Name the key, the class and the reason if MONAI could not create a component of a configuration."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    resolving = [frame.f_locals for frame in frames if frame.f_code.co_name == "_resolve_one_item"]
    if not resolving:
        return None
    key, item = resolving[-1]["id"].replace("::", "#"), resolving[-1].get("item")
    config = getattr(item, "config", None)
    is_step = re.fullmatch(r"\w+#\d+", key) and isinstance(config, str)
    if is_step and error.__cause__ is not None:  # the step was created, and failed when it ran
        return None
    target = f"{config['_target_']}: " if isinstance(config, dict) and "_target_" in config else ""
    reason = (isinstance(error, RuntimeError) and error.__cause__) or error
    kind = "" if isinstance(reason, ValueError | RuntimeError) else f"{type(reason).__name__}: "
    text = textwrap.shorten(str(reason) or "no reason given", 400).replace("::", "#")
    return LunaError(f"{key}: {target}{kind}{text}")


@contextmanager
def unwrapped_luna_errors() -> Iterator[None]:
    """Raise the :class:`LunaError` that a library has wrapped in another exception; do not change other exceptions."""
    try:
        yield
    except Exception as error:
        found = find_luna_error(error)
        if found is None or found is error:
            raise
        raise found from error


def install_one_line_errors() -> None:
    """Print one line instead of a traceback when this process ends because of a :class:`LunaError`.

    A bundle cannot catch its own errors under ``python -m monai.bundle``, so its ``initialize`` step calls this
    function. All other exceptions are shown with their traceback.
    """
    previous = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = find_luna_error(error)
        if found is None:
            previous(kind, error, trace)
        else:
            sys.stderr.write(f"error: {found}\n")

    sys.excepthook = excepthook
