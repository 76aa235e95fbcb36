"""What a run left behind, and the data it was made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from luna_monai.data import subset_of
from luna_monai.data.tables import ANNOTATIONS, read_findings
from luna_monai.errors import LunaError
from luna_monai.literals import text_of
from luna_monai.scans.sources import find_scans
from luna_monai.training.run_files import read_metrics, read_predictions


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read and checked.

    Attributes:
        folder: where it is.
        config: the resolved configuration, empty when it is missing.
        metrics: rows of ``metrics.csv``: ``epoch``, ``split`` (``trn`` or ``val``) and numbers, NaN where undefined.
        training: ``predictions/trn.csv``, None when it is missing.
        validation: ``predictions/val.csv``: ``row``, ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS,
            mm), ``class`` (bool), ``diameter_mm``, ``probability`` and ``loss``, NaN where the network's output was.
        annotations: the dataset's annotated nodules, None when the dataset is not at hand.
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

    def subset(self, seriesuid: str) -> int | None:
        """Tell the LUNA16 subset of a scan, None when its CT is not on disk."""
        return subset_of(self.scans[seriesuid]) if seriesuid in self.scans else None


def read_run(folder: str | Path, dataset_dir: str | Path | None = None) -> Run:
    """Read a run folder.

    Args:
        folder: what ``output_dir`` was in training.
        dataset_dir: the LUNA16 folder, where it is not where the run's ``config.yaml`` says.

    Returns:
        The run. Missing training predictions, configuration and dataset are noted, not refused.

    Raises:
        LunaError: when metrics or validation predictions are missing or damaged, or a given ``dataset_dir`` has no
            annotations.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LunaError(f"{folder}: no such folder; give the output_dir of a run")
    metrics_path, predictions = folder / "metrics.csv", folder / "predictions"
    for path in (metrics_path, predictions / "val.csv"):
        if not path.is_file():
            raise LunaError(f"{path}: no such file, so there is nothing to report; 'luna-monai train' writes it")
    notes: list[str] = []
    config = _read_config(folder / "config.yaml", notes)
    training = None
    if (predictions / "trn.csv").is_file():
        training = read_predictions(predictions / "trn.csv")
    else:
        notes.append("There are no training predictions, so results by subset cover validation only.")
    validation = read_predictions(predictions / "val.csv")

    annotations, excluded, scans = None, None, {}
    dataset = Path(dataset_dir if dataset_dir is not None else str(text_of(config.get("dataset_dir", ""))))
    if dataset_dir is not None or (config.get("dataset_dir") and (dataset / ANNOTATIONS).is_file()):
        annotations, excluded = read_findings(dataset)
        scans = find_scans(dataset)
    else:
        notes.append(
            "The dataset is not at hand, so there is no FROC curve, no result by subset and no picture. "
            "Give its folder with --dataset-dir."
        )
    return Run(folder, config, read_metrics(metrics_path), training, validation, annotations, excluded, scans, notes)


def _read_config(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.is_file():
        notes.append("There is no config.yaml, so the run's settings are not shown.")
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LunaError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise LunaError(f"{path}: expected keys and values, found {type(config).__name__}")
    return config
