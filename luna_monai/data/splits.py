"""Dividing the candidates into a training and a validation part."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from luna_monai.data.candidates import DatasetScans, subset_of
from luna_monai.errors import LunaError
from luna_monai.tables import read_table

logger = logging.getLogger(__name__)


def split_by_stride(candidates: pd.DataFrame, val_stride: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split as the book does: rows 0, s, 2s, … of the candidate table are for validation (chapter 10.5.3).

    Candidates of one scan, even of one nodule, are in both parts.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        val_stride: s; the book uses 10.

    Returns:
        Training and validation part, each with its rows' index in ``candidates``.

    Raises:
        LunaError: when a part would be empty.
    """
    if val_stride < 2 or len(candidates) < 2:
        raise LunaError(f"val_stride must be at least 2, found {val_stride} for {len(candidates)} candidates")
    is_validation = pd.Series(range(len(candidates)), index=candidates.index) % val_stride == 0
    return candidates[~is_validation], candidates[is_validation]


def split_by_subset(
    candidates: pd.DataFrame,
    fold: int | None,
    patients_file: str | Path | None = None,
    dataset_dir: str | Path | DatasetScans | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split by LUNA16's own subsets, the folds of its ten-fold cross-validation: no scan is in both parts.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        fold: the subset to validate on; all others are for training. When None, the first that has candidates.
        patients_file: keep the scans of one patient together, see :func:`read_patients`: all of them count to the
            lowest of their subsets, so that each scan is still validated in exactly one fold.
        dataset_dir: the LUNA16 dataset folder of the table; when None, the one that ``read_candidates`` has noted in
            ``candidates.attrs``, which pandas keeps in selections but not in a merge.

    Returns:
        Training and validation part, each with its rows' index in ``candidates``, the latter with ``fold`` in its
        ``attrs``.

    Raises:
        LunaError: when the fold has no candidates with a CT on disk, no other subset has, the patient of a scan is
            unknown, or the dataset folder of the table is.
    """
    dataset_dir = candidates.attrs.get("dataset_dir") if dataset_dir is None else dataset_dir
    if dataset_dir is None:
        raise LunaError("the dataset folder of the candidate table is unknown; pass dataset_dir")
    scans = DatasetScans.of(dataset_dir)
    folds = folds_of(candidates, scans, patients_file)
    present = sorted(folds.unique())
    fold = int(present[0]) if fold is None else fold
    if fold not in present:
        found = f"folds with scans: {', '.join(map(str, present))}"
        raise LunaError(f"fold {fold}: no scan with candidates in {scans.dataset_dir}/subset{fold}; {found}")
    if len(present) == 1:
        advice = "add another subset, or split by candidates with configs/book_ch11.yaml"
        raise LunaError(f"fold {fold}: {scans.dataset_dir} has scans in subset{fold} only; {advice}")
    logger.info("Validation on subset %d", fold)
    training, validation = candidates[folds != fold], candidates[folds == fold]
    validation.attrs["fold"] = fold
    return training, validation


def folds_of(
    candidates: pd.DataFrame, dataset_dir: str | Path | DatasetScans, patients_file: str | Path | None = None
) -> pd.Series:
    """Tell in which fold each candidate is validated.

    Args:
        candidates: see :func:`split_by_subset`.
        dataset_dir: see :func:`split_by_subset`.
        patients_file: see :func:`split_by_subset`.

    Returns:
        The number of the LUNA16 subset, indexed as ``candidates``.

    Raises:
        LunaError: when a scan is not in the folder, or its patient is unknown.
    """
    scans, uids = DatasetScans.of(dataset_dir), candidates["seriesuid"]
    folds = uids.map({seriesuid: subset_of(path) for seriesuid, path in scans.paths.items()})
    if folds.isna().any():
        raise LunaError(f"{scans.dataset_dir}: no CT of series {uids[folds.isna()].iloc[0]}; give its dataset_dir")
    if patients_file is None:
        return folds
    patients = uids.map(read_patients(patients_file))
    if patients.isna().any():
        raise LunaError(f"{patients_file}: no patient for series {uids[patients.isna()].iloc[0]}; add a row")
    return folds.groupby(patients).transform("min")


def read_patients(path: str | Path) -> pd.Series:
    """Read which patient each scan is of.

    Args:
        path: CSV file with ``PatientID`` and ``SeriesInstanceUID``, as the LIDC-IDRI mapping of LUNA16 has them. One
            patient of LUNA16's 888 scans, LIDC-IDRI-0332, was scanned twice.

    Returns:
        Patient ID by series UID.

    Raises:
        LunaError: when the file is missing or damaged, or gives two patients to one scan.
    """
    table = read_table(path, numeric=[], text=["PatientID", "SeriesInstanceUID"]).drop_duplicates()
    if not table["SeriesInstanceUID"].is_unique:
        seriesuid = table.loc[table["SeriesInstanceUID"].duplicated(), "SeriesInstanceUID"].iloc[0]
        raise LunaError(f"{path}: series {seriesuid} is listed with two patients")
    return table.set_index("SeriesInstanceUID")["PatientID"]


def check_split(training: pd.DataFrame, validation: pd.DataFrame, allow_shared_scans: bool = False) -> None:
    """Log how many scans, candidates and nodules each part has, and refuse a scan that is in both.

    Args:
        training: training part of the candidate table.
        validation: validation part.
        allow_shared_scans: only say how many scans are in both parts.

    Raises:
        LunaError: when a candidate is in both parts, or a scan is and may not be.
    """
    logger.info(f"{'part':10} {'scans':>7} {'candidates':>12} {'nodule candidates':>19}")
    for name, part in (("training", training), ("validation", validation)):
        scans, nodules = part["seriesuid"].nunique(), int((part["class"] == 1).sum())
        logger.info(f"{name:10} {scans:>7,} {len(part):>12,} {nodules:>19,}")
    both = training.index.intersection(validation.index)
    if len(both):
        raise LunaError(f"{len(both)} candidates are both for training and validation, the first in row {both[0]}")
    validation_scans = validation["seriesuid"].unique()
    shared = sorted(set(validation_scans) & set(training["seriesuid"].unique()))
    leak = f"{len(shared)} of {len(validation_scans)} validation scans have candidates in the training part too"
    if shared and not allow_shared_scans:
        raise LunaError(f"{leak}, such as {shared[0]}; split by subset, or set allow_shared_scans=true")
    if shared:
        logger.warning("This split leaks: %s, so validation looks better than it is", leak)
