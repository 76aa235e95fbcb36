"""Transforms, each as an array class and its dictionary wrapper."""

from luna_monai.transforms.augment import RandAugmentCandidates, resample_candidates
from luna_monai.transforms.crop import CropCandidates, CropCandidatesd, candidate_size
from luna_monai.transforms.intensity import ClipIntensityRange, ClipIntensityRanged
from luna_monai.transforms.load import LoadScan, LoadScand

__all__ = [
    "ClipIntensityRange",
    "ClipIntensityRanged",
    "CropCandidates",
    "CropCandidatesd",
    "LoadScan",
    "LoadScand",
    "RandAugmentCandidates",
    "candidate_size",
    "resample_candidates",
]
