"""Lungs, candidate locations proposed inside them, and findings."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "findings": ["Finding", "find_findings", "findings_table"],
        "lungs": ["chest_warnings"],
        "proposals": ["BlobProposer"],
    },
)
