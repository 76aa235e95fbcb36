"""Values of a configuration, and literal text in it that MONAI's parser must not interpret, such as paths and UIDs."""

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

_MARKS = re.compile(r"[$@%#]")


def literal(text: str) -> str:
    """Escape a text so that MONAI's configuration parser reads exactly this text.

    The parser evaluates text that starts with ``$``, replaces text that starts with ``%`` or is an ``@key``, and turns
    every ``#`` into ``::``. A text that contains one of these characters becomes an expression: a quoted Python string
    in which these characters are escaped.

    Args:
        text: any text, such as the name of a file.

    Returns:
        A value for a configuration; the text itself if it needs no escaping.
    """
    if not _MARKS.search(text):
        return text
    return "$" + _MARKS.sub(lambda found: f"\\x{ord(found[0]):02x}", ascii(text))


def literals(value: Any) -> Any:
    """Apply :func:`literal` to a text, or to each text of a list; return other values unchanged."""
    if isinstance(value, list | tuple):
        return [literals(item) for item in value]
    return literal(value) if isinstance(value, str) else value


def text_of(value: Any) -> Any:
    """Undo :func:`literal` without evaluating anything; return other values, including expressions, unchanged."""
    if isinstance(value, str) and value.startswith("$"):
        try:
            text = ast.literal_eval(value[1:])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value
        return text if isinstance(text, str) else value
    return value


def leaves_and_sections(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """List all values and sections of a configuration, each with its key; nested keys are joined by ``#``."""
    entries: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, item in entries:
        if name != "_meta_":
            inner = f"{key}#{name}" if key else str(name)
            yield inner, item
            yield from leaves_and_sections(item, inner)
