"""The commands. Each command is also a class in this package: ``LunaTrainingApp(argv).main()``, as in the book."""

from luna_monai.apps.cli import COMMANDS
from luna_monai.lazy import lazy_exports

_MODULES = {one: [name for module, name, _ in COMMANDS.values() if module == one] for one, _, _ in COMMANDS.values()}
__all__, __getattr__ = lazy_exports(__name__, _MODULES)
