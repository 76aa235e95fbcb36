"""Optional dependencies, which the extras of luna-monai install."""

import importlib
from typing import Any

from luna_monai.errors import LunaError


def import_extra(module: str, extra: str) -> Any:
    """Import an optional dependency.

    Args:
        module: name of the package.
        extra: the extra of luna-monai that installs the package.

    Returns:
        The package.

    Raises:
        LunaError: when the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LunaError(f"{module} is required but not installed: pip install 'luna-monai[{extra}]'") from None
