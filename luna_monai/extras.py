"""Packages that are not always installed: the extras of this one."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from luna_monai.errors import LunaError

#: What a package would load to send usage statistics from the moment it is imported.
_STATISTICS = {"openvino": "openvino_telemetry"}


def import_extra(module: str, extra: str) -> Any:
    """Import a package that belongs to an extra of this one, without what it would send to its makers.

    Args:
        module: the package.
        extra: the extra of luna-monai that installs it.

    Returns:
        The package.

    Raises:
        LunaError: when it is not installed.
    """
    unwanted = _STATISTICS.get(module, "")
    block = bool(unwanted) and unwanted not in sys.modules
    if block:
        sys.modules[unwanted] = None  # type: ignore[assignment]  # makes importing it fail, which is provided for
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LunaError(f"{module} is not installed, but needed here: pip install 'luna-monai[{extra}]'") from None
    finally:
        if block:
            del sys.modules[unwanted]
