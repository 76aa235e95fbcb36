"""Dividing the candidates into a training and a validation part."""

from __future__ import annotations

import pandas as pd

from luna_monai.data.candidates import find_scans, subset_of
from luna_monai.errors import LunaError


def split_by_stride(candidates: pd.DataFrame, val_stride: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split as the book does: rows 0, s, 2s, … of the candidate table are for validation (chapter 10.5.3).

    Candidates of one scan, even of one nodule, come to stand in both parts.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        val_stride: s; the book uses 10.

    Returns:
        Training and validation part, each with its rows' index in ``candidates``.

    Raises:
        LunaError: when a part would be empty.
    """
    if val_stride < 2:
        raise LunaError(f"val_stride must be at least 2, found {val_stride}: with 1 nothing is left to train on")
    is_validation = pd.Series(range(len(candidates)), index=candidates.index) % val_stride == 0
    if is_validation.all():
        raise LunaError(f"{len(candidates)} candidates are too few to split with val_stride {val_stride}")
    return candidates[~is_validation], candidates[is_validation]


def split_by_subset(candidates: pd.DataFrame, fold: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by LUNA16's own subsets, the folds of its ten-fold cross-validation: no scan is in both parts.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`; its ``attrs["dataset_dir"]`` says where the
            subsets are.
        fold: the subset to validate on; all others are for training.

    Returns:
        Training and validation part, each with its rows' index in ``candidates``.

    Raises:
        LunaError: when the fold has no candidates with a CT on disk, or no other subset has.
    """
    dataset_dir = candidates.attrs["dataset_dir"]
    subset_of_series = {seriesuid: subset_of(path) for seriesuid, path in find_scans(dataset_dir).items()}
    subsets = candidates["seriesuid"].map(subset_of_series)
    present = sorted(subsets.unique())
    names = ", ".join(map(str, present))
    if fold not in present:
        raise LunaError(
            f"fold {fold}: no scan with candidates in {dataset_dir}/subset{fold}; folds with scans: {names}"
        )
    if len(present) == 1:
        raise LunaError(
            f"fold {fold}: {dataset_dir} has scans in subset{fold} only, so nothing is left to train on; "
            "add another subset, or split by candidates with configs/book_ch11.yaml"
        )
    is_validation = subsets == fold
    return candidates[~is_validation], candidates[is_validation]
