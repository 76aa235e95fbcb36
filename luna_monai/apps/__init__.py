"""One module a command. Each command is also a class here: ``LunaTrainingApp(argv).main()``, as in the book."""

from luna_monai.apps.cli import COMMANDS
from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(__name__, {module: [name] for module, name, _ in COMMANDS.values()})
