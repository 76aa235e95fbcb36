"""Candidates, CTs, the cache and the datasets."""

from luna_monai.data.cache import SeriesCache, series_items
from luna_monai.data.candidates import find_scans, read_candidates, subset_of
from luna_monai.data.datasets import CandidateBatch, CandidateDataset, CandidateLoader, collate_candidates
from luna_monai.data.doctor import examine_dataset
from luna_monai.data.doctor_findings import Finding
from luna_monai.data.precache import Precache, PrecachePlan
from luna_monai.data.readers import Geometry, SimpleITKReader, check_scan, files_of_scan, map_or_read, read_geometry
from luna_monai.data.samplers import BalancedSampler
from luna_monai.data.splits import (
    check_split,
    folds_of,
    read_patients,
    split_by_series_stride,
    split_by_stride,
    split_by_subset,
)
from luna_monai.data.tables import read_table

__all__ = [
    "BalancedSampler",
    "CandidateBatch",
    "CandidateDataset",
    "CandidateLoader",
    "Finding",
    "Geometry",
    "Precache",
    "PrecachePlan",
    "SeriesCache",
    "SimpleITKReader",
    "check_scan",
    "check_split",
    "collate_candidates",
    "examine_dataset",
    "files_of_scan",
    "find_scans",
    "folds_of",
    "map_or_read",
    "read_candidates",
    "read_geometry",
    "read_patients",
    "read_table",
    "series_items",
    "split_by_series_stride",
    "split_by_stride",
    "split_by_subset",
    "subset_of",
]
