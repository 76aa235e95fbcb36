"""Packages that are not always installed: the extras of this one."""

from __future__ import annotations

import importlib
from typing import Any

from luna_monai.errors import LunaError


def import_extra(module: str, extra: str) -> Any:
    """Import a package that belongs to an extra of this one.

    Args:
        module: the package.
        extra: the extra of luna-monai that installs it.

    Returns:
        The package.

    Raises:
        LunaError: when it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LunaError(f"{module} is not installed, but needed here: pip install 'luna-monai[{extra}]'") from None
