"""Candidate tables, splits, samplers, the series cache, datasets and the data loader."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "cache": ["SeriesCache", "series_items"],
        "candidates": ["DatasetScans", "read_candidates", "subset_of"],
        "datasets": ["CandidateDataset", "CandidateLoader", "LunaDataset", "scan_list"],
        "doctor": ["Finding", "examine_dataset"],
        "precache": ["Precache", "available_cores"],
        "samplers": ["BalancedSampler"],
        "splits": ["check_split", "folds_of", "read_patients", "split_by_stride", "split_by_subset", "with_fold"],
    },
)
