"""The CSV tables of LUNA16."""

import logging
from pathlib import Path

import pandas as pd

from luna_monai.tables import read_table

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"
#: Warning of commands that compute the FROC without the excluded findings.
WITHOUT_EXCLUDED = f"no {EXCLUDED}: candidates on its findings count as false positives, so CPM is lower than LUNA16's"
COORDINATES = ["coordX", "coordY", "coordZ"]
#: Larger values are typing errors, such as a lost decimal point.
MAX_DIAMETER_MM = 300


def read_findings(dataset_dir: str | Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read the annotated nodules and the excluded findings of a LUNA16 dataset.

    Args:
        dataset_dir: LUNA16 dataset folder.

    Returns:
        The nodules of ``annotations.csv``, and the findings of ``annotations_excluded.csv``, or None and a warning if
        that file is missing. The columns are ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm) and
        ``diameter_mm``.

    Raises:
        LunaError: when a table is damaged, or ``annotations.csv`` is missing.
    """
    annotations = read_finding_table(Path(dataset_dir) / ANNOTATIONS, negative_is_usual=False)
    excluded = Path(dataset_dir) / EXCLUDED
    if not excluded.is_file():
        logger.warning("%s: %s", dataset_dir, WITHOUT_EXCLUDED)
        return annotations, None
    return annotations, read_finding_table(excluded)


def read_finding_table(path: str | Path, *, negative_is_usual: bool = True) -> pd.DataFrame:
    """Read a table of findings.

    Args:
        path: the CSV file.
        negative_is_usual: whether to accept negative diameters, which count as 10 mm, without a warning. They are
            usual for excluded findings, but not for nodules.
    """
    size = {"diameter_mm": (lambda values: values <= MAX_DIAMETER_MM, f"at most {MAX_DIAMETER_MM}")}
    table = read_table(path, [*COORDINATES, "diameter_mm"], allowed=size)
    negative = int((table["diameter_mm"] < 0).sum())
    if negative and not negative_is_usual:
        logger.warning("%s: %d nodules have a negative diameter_mm; they count as 10 mm wide", path, negative)
    return table
