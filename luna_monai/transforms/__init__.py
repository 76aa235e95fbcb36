"""Transforms, each as an array class and a dictionary wrapper."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "augment": ["RandAugmentCandidates", "resample_candidates"],
        "crop": ["CropCandidates", "CropCandidatesd"],
        "intensity": ["ClipIntensityRange", "ClipIntensityRanged"],
        "load": ["LoadScan", "LoadScand"],
    },
)
