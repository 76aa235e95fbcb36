"""The tables in the folder of a run: one reader for all commands that use them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.tables import EXACTLY

METRICS = "metrics.csv"
PREDICTIONS = "predictions"
CONFIG = "config.yaml"
#: Columns of ``predictions/trn.csv`` and ``val.csv``, and their types.
PREDICTION_COLUMNS: Mapping[str, Any] = {
    "row": int,
    "seriesuid": str,
    **dict.fromkeys(COORDINATES, float),
    "class": int,
    **dict.fromkeys(("diameter_mm", "probability", "loss"), float),
}


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a run's ``metrics.csv``.

    Args:
        path: the file.

    Returns:
        ``epoch``, ``split`` (``trn`` or ``val``) and numbers, NaN where undefined.

    Raises:
        LunaError: when the file is missing or damaged.
    """
    table = _read(path, defaultdict(lambda: float, epoch=int, split=str))
    if not {"epoch", "split"} <= set(table):
        raise LunaError(f"{path}: no columns 'epoch' and 'split'; expected a table that 'luna-monai train' writes")
    return table


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a run's predictions of one split.

    Args:
        path: ``predictions/trn.csv`` or ``val.csv``.

    Returns:
        ``row``, ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm), ``class`` (bool), ``diameter_mm``,
        ``probability`` and ``loss``, NaN where the network's output was.

    Raises:
        LunaError: when the file is missing or damaged, or has no candidate.
    """
    table = _read(path, PREDICTION_COLUMNS, list(PREDICTION_COLUMNS))
    wrong = ~table["class"].isin([0, 1]) | ~table["probability"].fillna(0).between(0, 1)
    wrong |= table[COORDINATES].isna().any(axis=1)
    if wrong.any() or table.empty:
        row = f"data row {wrong.to_numpy().argmax() + 1}" if len(table) else "no candidates"
        raise LunaError(f"{path}: {row}; expected coordinates, a class of 0 or 1 and a probability from 0 to 1")
    return table.astype({"class": bool})


def _read(path: Path, types: Mapping[str, Any], columns: list[str] | None = None) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=types, usecols=columns, **EXACTLY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise LunaError(f"{path}: {reason}; expected a table that 'luna-monai train' writes") from None
