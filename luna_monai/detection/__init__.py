"""Lungs, and candidate locations proposed inside them."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "lungs": ["chest_warnings"],
        "proposals": ["BlobProposer"],
    },
)
