"""Splits of the candidates into a training and a validation part."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from luna_monai.data.candidates import DatasetScans, subset_of
from luna_monai.errors import LunaError
from luna_monai.tables import read_table

logger = logging.getLogger(__name__)


def split_by_stride(candidates: pd.DataFrame, val_stride: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split as the book does: rows 0, s, 2s, … of the candidate table are for validation (chapter 10.5.3).

    Both parts contain candidates of the same scans, and even of the same nodules.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        val_stride: the stride s; the book uses 10.

    Returns:
        Training and validation part, with the index of ``candidates``.

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
    """Split by LUNA16's subsets, the folds of its ten-fold cross-validation. No scan is in both parts.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        fold: the subset for validation; all others are for training. None uses the first subset with candidates.
        patients_file: table of patients, see :func:`read_patients`, to keep the scans of a patient together. All scans
            of a patient belong to the lowest of their subsets, so that each scan is validated in exactly one fold.
        dataset_dir: the LUNA16 dataset folder of the table. None uses the folder that ``read_candidates`` has stored
            in ``candidates.attrs``, which pandas keeps in selections but not in a merge.

    Returns:
        Training and validation part, with the index of ``candidates``. The validation part has ``fold`` in its
        ``attrs``.

    Raises:
        LunaError: when the fold has no candidates with a CT on disk, no other subset has candidates, or the patient of
            a scan or the dataset folder is unknown.
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
    """Return the fold in which each candidate is validated.

    Args:
        candidates: see :func:`split_by_subset`.
        dataset_dir: see :func:`split_by_subset`.
        patients_file: see :func:`split_by_subset`.

    Returns:
        The number of the LUNA16 subset of each candidate, with the index of ``candidates``.

    Raises:
        LunaError: when a scan is not in the folder, or its patient is unknown.
    """
    scans, uids = DatasetScans.of(dataset_dir), candidates["seriesuid"]
    folds = uids.map({seriesuid: subset_of(path) for seriesuid, path in scans.paths.items()})
    if folds.isna().any():
        raise LunaError(f"{scans.dataset_dir}: no CT of series {uids[folds.isna()].iloc[0]}; pass its dataset_dir")
    if patients_file is None:
        return folds
    patients = uids.map(read_patients(patients_file))
    if patients.isna().any():
        raise LunaError(f"{patients_file}: no patient for series {uids[patients.isna()].iloc[0]}; add a row")
    return folds.groupby(patients).transform("min")


def with_fold(configuration: Mapping[str, Any], validation: pd.DataFrame) -> dict[str, Any]:
    """Replace ``fold: null`` in a configuration by the fold in use, so that a run can be repeated with more scans.

    Args:
        configuration: the configuration of a run.
        validation: the validation part of its split; :func:`split_by_subset` stores the fold in its ``attrs``.

    Returns:
        A copy of the configuration. For other splits, ``fold`` is unchanged.
    """
    return {**configuration, "fold": validation.attrs.get("fold", configuration["fold"])}


def read_patients(path: str | Path) -> pd.Series:
    """Read the patient of each scan.

    Args:
        path: CSV file with ``PatientID`` and ``SeriesInstanceUID``, such as the LIDC-IDRI mapping of LUNA16. In LUNA16,
            one patient, LIDC-IDRI-0332, has two scans.

    Returns:
        Patient ID by series UID.

    Raises:
        LunaError: when the file is missing or damaged, or lists a scan with two patients.
    """
    table = read_table(path, numeric=[], text=["PatientID", "SeriesInstanceUID"]).drop_duplicates()
    if not table["SeriesInstanceUID"].is_unique:
        seriesuid = table.loc[table["SeriesInstanceUID"].duplicated(), "SeriesInstanceUID"].iloc[0]
        raise LunaError(f"{path}: series {seriesuid} is listed with two patients; remove one of the rows")
    return table.set_index("SeriesInstanceUID")["PatientID"]


def check_split(training: pd.DataFrame, validation: pd.DataFrame, allow_shared_scans: bool = False) -> None:
    """Log the number of scans, candidates and nodule candidates of each part, and refuse scans that are in both.

    Args:
        training: training part of the candidate table.
        validation: validation part of the candidate table.
        allow_shared_scans: log a warning about scans in both parts instead of raising an error.

    Raises:
        LunaError: when a candidate is in both parts, or a scan is and ``allow_shared_scans`` is False.
    """
    logger.info(f"{'part':10} {'scans':>7} {'candidates':>12} {'nodule candidates':>19}")
    for name, part in (("training", training), ("validation", validation)):
        scans, nodules = part["seriesuid"].nunique(), int((part["class"] == 1).sum())
        logger.info(f"{name:10} {scans:>7,} {len(part):>12,} {nodules:>19,}")
    both = training.index.intersection(validation.index)
    if len(both):
        raise LunaError(f"{len(both)} candidates are in both parts, the first in row {both[0]}; check the split")
    validation_scans = validation["seriesuid"].unique()
    shared = sorted(set(validation_scans) & set(training["seriesuid"].unique()))
    leak = f"{len(shared)} of {len(validation_scans)} validation scans have candidates in the training part too"
    if shared and not allow_shared_scans:
        raise LunaError(f"{leak}, such as {shared[0]}; split by subset, or set allow_shared_scans=true")
    if shared:
        logger.warning("This split leaks: %s, so the validation metrics are too optimistic", leak)
