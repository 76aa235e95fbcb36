"""The lung-nodule classifier of *Deep Learning with PyTorch*, chapter 11, rebuilt on MONAI."""

from importlib.metadata import version

from luna_monai.lazy import lazy_exports

__version__ = version("luna-monai")
__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "classifier": ["NoduleClassifier", "load"],
        "data": ["LunaDataset", "read_candidates"],
        "errors": ["LunaError"],
        "networks": ["LunaModel"],
        "scans": ["read_scan"],
    },
)
