"""Packages whose names are loaded on first use: MONAI and torch take seconds to import."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """Make the ``__all__`` and the ``__getattr__`` of a package.

    Args:
        package: its name.
        modules: the public names of each of its modules.

    Returns:
        All names, sorted, and a function that finds one of them by importing its module.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getattr_(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), getattr_
