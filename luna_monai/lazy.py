"""Packages whose names are loaded on first use: MONAI and torch take seconds to import."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: What MONAI and ignite import, and take from it, for parts of theirs that most commands never use: half of the time of
#: ``import monai``.
RARELY_USED = {
    "matplotlib": ["pyplot"],
    "mlflow": ["entities", "exceptions"],
    "mlflow.exceptions": ["MlflowException"],
    "requests": ["get"],
    "scipy.optimize": ["linear_sum_assignment"],
    "scipy.signal": ["hilbert", "iirnotch"],
    "sklearn": ["linear_model", "metrics"],
    "sklearn.linear_model": ["LogisticRegression"],
    "sklearn.metrics": ["silhouette_score"],
    "tensorboard.compat.proto.summary_pb2": ["Summary"],
    "torch.distributed.optim": ["ZeroRedundancyOptimizer"],
    "torch.utils.tensorboard": ["SummaryWriter"],
}


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


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Put off the imports of ``RARELY_USED`` by whatever is imported inside the context, until they are used.

    Who imports one meanwhile gets a stand-in, which imports the module when it is called or asked for an attribute.
    Modules that are imported already, or not installed, are left alone. The garbage collector pauses while MONAI is
    imported for the first time, because looking at all modules again and again takes a quarter of the time.
    """
    paused = gc.isenabled() and "monai" not in sys.modules
    if paused:
        gc.disable()
    stand_ins: dict[str, _StandIn] = {}
    for module, names in RARELY_USED.items():
        if module not in sys.modules and importlib.util.find_spec(module.partition(".")[0]):
            parent = stand_ins.setdefault(module, _StandIn(module))
            for name in names:
                stand_ins[f"{module}.{name}"] = vars(parent)[name] = _StandIn(f"{module}.{name}")
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            if isinstance(sys.modules.get(name), _StandIn):
                del sys.modules[name]
        if paused:
            gc.enable()


class _StandIn(ModuleType):
    """A module, or a class or function of one, that is imported when it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # MONAI takes what has no file for an empty folder; torch's compiler asks packages for their spec.
        self.__file__, self.__spec__ = name, importlib.util.spec_from_loader(name, None)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            raise AttributeError(name)  # Python asks each module for it that something is imported from
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def _real(self) -> Any:
        for name, module in list(sys.modules.items()):
            if isinstance(module, _StandIn) and f"{self.__name__}.".startswith(f"{name}."):
                del sys.modules[name]
        return pkgutil.resolve_name(self.__name__)
