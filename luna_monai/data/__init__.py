"""Candidates, CTs, the cache and the datasets."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "cache": ["SeriesCache", "series_items"],
        "candidates": ["find_scans", "read_candidates", "subset_of"],
        "datasets": ["CandidateBatch", "CandidateDataset", "CandidateLoader", "collate_candidates"],
        "doctor": ["examine_dataset"],
        "doctor_findings": ["Finding"],
        "lungs": ["chest_warnings"],
        "points": ["CandidateList"],
        "precache": ["Precache", "PrecachePlan"],
        "prediction_scans": ["ScanDataset"],
        "proposals": ["BlobProposer"],
        "readers": [
            "Geometry",
            "SimpleITKReader",
            "check_scan",
            "files_of_scan",
            "map_or_read",
            "read_geometry",
        ],
        "samplers": ["BalancedSampler"],
        "scans": ["ScanSource", "list_scans", "load_scan"],
        "splits": [
            "check_split",
            "folds_of",
            "read_patients",
            "split_by_series_stride",
            "split_by_stride",
            "split_by_subset",
        ],
        "tables": ["read_table"],
    },
)
