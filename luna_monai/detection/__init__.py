"""Lung segmentation, candidate proposals inside the lungs, and findings."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "findings": ["Finding", "find_findings", "findings_table"],
        "lungs": ["chest_warnings"],
        "proposals": ["BlobProposer"],
    },
)
