"""One module a command. Each command is also a class here: ``LunaTrainingApp(argv).main()``, as in the book."""

from __future__ import annotations

import importlib
from typing import Any

from luna_monai.apps.cli import COMMANDS

__all__ = [class_name for _, class_name, _ in COMMANDS.values()]


def __getattr__(name: str) -> Any:
    # Commands import torch and MONAI (ten seconds on a cold disk), so a class is only loaded when it is asked for.
    for module_name, class_name, _ in COMMANDS.values():
        if name == class_name:
            return getattr(importlib.import_module(f"luna_monai.apps.{module_name}"), class_name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
