"""Readers for the tables in a run folder."""

from collections import defaultdict
from pathlib import Path

import pandas as pd

from luna_monai.data.candidates import ALLOWED
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError, reason_of
from luna_monai.tables import EXACTLY, read_table

METRICS = "metrics.csv"
PREDICTIONS = "predictions"
CONFIG = "config.yaml"
#: Columns of ``predictions/trn.csv`` and ``val.csv``.
PREDICTION_COLUMNS = ["row", "seriesuid", *COORDINATES, "class", "diameter_mm", "probability", "loss"]


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a run's ``metrics.csv``.

    Args:
        path: the file.

    Returns:
        Table with ``epoch``, ``split`` (``trn`` or ``val``) and a column for each metric, NaN where undefined.

    Raises:
        LunaError: if the file is missing or damaged.
    """
    try:
        table = pd.read_csv(path, dtype=defaultdict(lambda: float, epoch=int, split=str), **EXACTLY)
        return table.set_index(["epoch", "split"]).reset_index()  # KeyError without these columns
    except (OSError, ValueError, KeyError) as error:
        raise LunaError(f"{path}: {reason_of(error)}; expected a table that 'luna-monai train' writes") from None


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a run's predictions of one split.

    Args:
        path: ``predictions/trn.csv`` or ``val.csv``.

    Returns:
        Table with ``row``, ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm), ``class`` (bool),
        ``diameter_mm``, ``probability`` and ``loss``.

    Raises:
        LunaError: if the file is missing or damaged, or has no candidates.
    """
    if not path.is_file():
        raise LunaError(f"{path}: no such file; training writes it after a best epoch, unless its metrics are NaN")
    numbers = [name for name in PREDICTION_COLUMNS if name != "seriesuid"]
    in_range = (lambda values: values.between(0, 1), "between 0 and 1")
    table = read_table(path, numbers, allowed={"class": ALLOWED["class"], "probability": in_range})
    if table.empty:
        raise LunaError(f"{path}: no candidates")
    return table.astype({"row": int, "class": bool})[PREDICTION_COLUMNS]
