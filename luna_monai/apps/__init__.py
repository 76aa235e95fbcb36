"""The commands. Each command is also a class in this package: ``LunaTrainingApp(argv).main()``, as in the book."""

from luna_monai.apps.cli import COMMANDS
from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {module: [name for other, name, _ in COMMANDS.values() if other == module] for module, _, _ in COMMANDS.values()},
)
