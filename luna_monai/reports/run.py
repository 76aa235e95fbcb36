"""The files of a run, and its dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from luna_monai.data.tables import ANNOTATIONS, read_findings
from luna_monai.errors import LunaError
from luna_monai.literals import text_of
from luna_monai.scans.sources import find_scans
from luna_monai.training.run_files import read_metrics, read_predictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read and checked.

    Attributes:
        folder: where it is.
        config: the resolved configuration, empty when it is missing.
        metrics: rows of ``metrics.csv``: ``epoch``, ``split`` (``trn`` or ``val``) and numbers, NaN where undefined.
        training: ``predictions/trn.csv``, None when it is missing.
        validation: ``predictions/val.csv``, as :func:`~luna_monai.training.run_files.read_predictions` gives it.
        annotations: the dataset's annotated nodules, None when the dataset is missing.
        excluded: the dataset's excluded findings, None when there is no list of them.
        scans: the CT of each series that is on disk.
        notes: what is missing, in sentences for the reader.
    """

    folder: Path
    config: dict[str, Any]
    metrics: pd.DataFrame
    training: pd.DataFrame | None
    validation: pd.DataFrame
    annotations: pd.DataFrame | None = None
    excluded: pd.DataFrame | None = None
    scans: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(folder: str | Path, dataset_dir: str | Path | None = None) -> Run:
    """Read a run folder.

    Args:
        folder: what ``output_dir`` was in training.
        dataset_dir: the LUNA16 folder, where it is not where the run's ``config.yaml`` says.

    Returns:
        The run. Missing training predictions, configuration, dataset and scans are noted and logged, not refused.

    Raises:
        LunaError: when metrics or validation predictions are missing or damaged, or a given ``dataset_dir`` has no
            annotations.
    """
    folder = Path(folder)
    metrics = read_metrics(folder / "metrics.csv")
    validation = read_predictions(folder / "predictions" / "val.csv")
    training_path, config_path, notes = folder / "predictions" / "trn.csv", folder / "config.yaml", []
    training, config = None, {}
    if training_path.is_file():
        training = read_predictions(training_path)
    else:
        notes.append("There are no training predictions.")
    if config_path.is_file():
        try:
            config = dict(yaml.safe_load(config_path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, ValueError) as error:
            raise LunaError(f"{config_path}: not the YAML of a run ({' '.join(str(error).split())})") from None
    else:
        notes.append("There is no config.yaml, so the run's settings are not shown.")
    dataset = Path(dataset_dir or str(text_of(config.get("dataset_dir", ""))))
    annotations, excluded, scans = None, None, {}
    if dataset_dir or (dataset / ANNOTATIONS).is_file():
        annotations, excluded = read_findings(dataset)
        scans = find_scans(dataset)
        validated = validation["seriesuid"].drop_duplicates()
        missing = int((~validated.isin(list(scans))).sum())
        if missing:
            notes.append(f"The CTs of {missing:,} of {len(validated):,} validation scans are not in {dataset.name}.")
    else:
        notes.append(
            "The dataset is missing, so there is no FROC curve and no picture. Give its folder with --dataset-dir."
        )
    for note in notes:
        logger.warning("%s: %s", folder, note)
    return Run(folder, config, metrics, training, validation, annotations, excluded, scans, notes)
