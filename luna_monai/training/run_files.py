"""The tables in the folder of a run: one reader for all commands that use them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError

METRICS = "metrics.csv"
PREDICTIONS = "predictions"
CONFIG = "config.yaml"
PREDICTION_COLUMNS = ("row", "seriesuid", *COORDINATES, "class", "diameter_mm", "probability", "loss")


def read_metrics(path: Path) -> pd.DataFrame:
    """Read ``metrics.csv``.

    Args:
        path: the file.

    Returns:
        ``epoch``, ``split`` (``trn`` or ``val``) and numbers, NaN where undefined.

    Raises:
        LunaError: when it is missing or damaged.
    """
    table = _read(path, ["epoch", "split"], text="split", defined=["epoch"])
    _check(path, table, "split", table["split"].isin(["trn", "val"]), "trn or val")
    return table.astype({"epoch": int})


def read_predictions(path: Path) -> pd.DataFrame:
    """Read ``predictions/trn.csv`` or ``val.csv``.

    Args:
        path: the file.

    Returns:
        ``PREDICTION_COLUMNS``: coordinates in LPS, mm; ``class`` is bool; ``probability`` and ``loss`` are NaN where
        the network's output was.

    Raises:
        LunaError: when it is missing, empty or damaged.
    """
    table = _read(path, PREDICTION_COLUMNS, text="seriesuid", defined=["row", *COORDINATES, "class", "diameter_mm"])
    probability = table["probability"]
    _check(path, table, "class", table["class"].isin([0, 1]), "0 or 1")
    _check(path, table, "probability", probability.between(0, 1) | probability.isna(), "between 0 and 1")
    return table.astype({"class": bool, "row": int})


def _read(path: Path, columns: Sequence[str], text: str, defined: Sequence[str]) -> pd.DataFrame:
    """Read a table of numbers and one column of text; what is not ``defined`` may be empty."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype={text: str}, index_col=False)
    except (OSError, ValueError, pd.errors.ParserWarning) as error:  # pandas' own are ValueErrors
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise LunaError(f"{path}: cannot be read ({reason})") from None
    missing = [column for column in columns if column not in table]
    if missing or table.empty:
        raise LunaError(f"{path}: {f'no column {missing[0]!r}' if missing else 'a header line and no rows'}")
    _check(path, table, text, table[text].notna(), "text")
    for column in table.columns.drop(text):
        numbers = pd.to_numeric(table[column], errors="coerce")
        valid = np.isfinite(numbers) if column in defined else numbers.notna() | table[column].isna()
        _check(path, table, column, valid, "a number")
        table[column] = numbers
    return table


def _check(path: Path, table: pd.DataFrame, column: str, valid: pd.Series, expected: str) -> None:
    if not valid.all():
        row = int((~valid).to_numpy().argmax())
        raise LunaError(f"{path}, line {row + 2}: {column!r} must be {expected}, found {table[column].iat[row]}")
