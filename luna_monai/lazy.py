"""Imports on first use, because MONAI and torch take seconds to import."""

import gc
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

#: Modules that MONAI and ignite import for features that most commands never use, and the names that they import from
#: each. These imports take half of the time of ``import monai``.
RARELY_USED = {
    "matplotlib": ["pyplot"],
    "mlflow": ["entities", "exceptions"],
    "mlflow.exceptions": ["MlflowException"],
    "nibabel": [],
    "nibabel.nifti1": ["Nifti1Image"],
    "pydicom": [],
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
    """Create the ``__all__`` and the ``__getattr__`` of a package.

    Args:
        package: name of the package.
        modules: public names of the package, by the module that defines them.

    Returns:
        All names, sorted, and a function that imports and returns the object of a name, or a module of the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def getattr_(name: str) -> Any:
        place = f"{package}.{module_of.get(name, name)}"
        if importlib.util.find_spec(place) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(place)
        return getattr(module, name) if name in module_of else module

    return sorted(module_of), getattr_


@contextmanager
def deferred_imports() -> Iterator[None]:
    """Defer imports of the ``RARELY_USED`` modules inside the context until they are used.

    An import during this time receives a placeholder, which imports the module when it is called or one of its
    attributes is read. Modules that are already imported, or not installed, are not affected. The garbage collector is
    disabled while MONAI is imported for the first time, because its repeated scans take a quarter of the time. The
    objects that exist afterwards are exempt from later scans, which take a tenth of the time of a prediction.
    """
    paused = gc.isenabled() and "monai" not in sys.modules
    if paused:
        gc.disable()
    placeholders: dict[str, _Placeholder] = {}
    for module, names in RARELY_USED.items():
        if module not in sys.modules and importlib.util.find_spec(module.partition(".")[0]):
            parent = placeholders.setdefault(module, _Placeholder(module))
            for name in names:
                placeholders[f"{module}.{name}"] = vars(parent)[name] = _Placeholder(f"{module}.{name}")
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        for name in placeholders:
            if isinstance(sys.modules.get(name), _Placeholder):
                del sys.modules[name]
        if paused:
            gc.freeze()
            gc.enable()


class _Placeholder(ModuleType):
    """Placeholder for a module, or for a class or function in it, that is imported when it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        # MONAI treats a module without a file as an empty folder, and torch's compiler reads the spec of packages.
        self.__file__, self.__spec__ = name, importlib.util.spec_from_loader(name, None)

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":
            raise AttributeError(name)  # Python reads it whenever something is imported from a module
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def _real(self) -> Any:
        for name, module in list(sys.modules.items()):
            if isinstance(module, _Placeholder) and f"{self.__name__}.".startswith(f"{name}."):
                del sys.modules[name]
        return pkgutil.resolve_name(self.__name__)
