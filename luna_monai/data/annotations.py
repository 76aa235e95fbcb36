"""The findings that LUNA16's evaluation counts: nodules, and findings that are neither right nor wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from luna_monai.data.tables import COORDINATES, read_table

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"
POSITIVE = {"diameter_mm": (lambda values: values > 0, "above 0")}


def read_findings(dataset_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the annotated nodules and the excluded findings of a LUNA16 dataset.

    Without ``annotations_excluded.csv`` a warning is logged: FROC and CPM are then lower than LUNA16's.

    Args:
        dataset_dir: LUNA16 dataset folder.

    Returns:
        The nodules of ``annotations.csv`` and the findings of ``annotations_excluded.csv``, None where that file is
        missing: each ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm) and ``diameter_mm``, which for
        excluded findings is -1 where it is unknown.

    Raises:
        LunaError: when a table is damaged, or ``annotations.csv`` is missing.
    """
    dataset_dir = Path(dataset_dir)
    columns = [*COORDINATES, "diameter_mm"]
    annotations = read_table(dataset_dir / ANNOTATIONS, columns, allowed=POSITIVE)
    excluded = dataset_dir / EXCLUDED
    if excluded.is_file():
        return annotations, read_table(excluded, columns)
    logger.warning(
        "%s: not found, so detections of excluded findings count as false positives: sensitivities and CPM are lower "
        "than LUNA16's evaluation gives; copy the file from LUNA16's evaluationScript.zip",
        excluded,
    )
    return annotations, None
