"""The findings that LUNA16's evaluation counts: nodules, and what is neither right nor wrong."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from luna_monai.data.tables import COORDINATES, read_table

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"


def read_findings(dataset_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the annotated nodules and the excluded findings of a LUNA16 dataset.

    Args:
        dataset_dir: LUNA16 dataset folder.

    Returns:
        The nodules of ``annotations.csv`` and the findings of ``annotations_excluded.csv``, None where that file is
        missing: each ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm) and ``diameter_mm``.

    Raises:
        LunaError: when a table is damaged, or ``annotations.csv`` is missing.
    """
    dataset_dir = Path(dataset_dir)
    columns = [*COORDINATES, "diameter_mm"]
    annotations = read_table(dataset_dir / ANNOTATIONS, columns)
    excluded = dataset_dir / EXCLUDED
    return annotations, read_table(excluded, columns) if excluded.is_file() else None
