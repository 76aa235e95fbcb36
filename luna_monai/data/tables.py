"""Reading the CSV tables that LUNA16 is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from luna_monai.errors import LunaError

COORDINATES = ["coordX", "coordY", "coordZ"]


def read_table(
    path: str | Path,
    numeric: Sequence[str],
    text: Sequence[str] = ("seriesuid",),
    optional: Sequence[str] = (),
) -> pd.DataFrame:
    """Read a CSV file with a header line and check every value that is needed.

    Args:
        path: the CSV file.
        numeric: columns that must hold finite numbers; they are read as the nearest float64, as Python's ``float``
            does.
        text: columns that must hold non-empty text.
        optional: columns that must do so if they are there.

    Returns:
        A table of ``text``, ``optional`` and ``numeric`` columns, in this order, one row per line of the file, indexed
        from 0.

    Raises:
        LunaError: when the file is missing, empty, no CSV table, lacks a column, or holds something else than a
            number where one is needed; the message names the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise LunaError(f"{path}: no such file; it is one of the CSV tables that LUNA16 is published with")
    columns = [*text, *numeric]
    try:
        table = pd.read_csv(
            path,
            dtype=dict.fromkeys([*text, *optional], str),
            skip_blank_lines=False,
            skipinitialspace=True,
            low_memory=False,
        )
    except pd.errors.EmptyDataError:
        raise LunaError(f"{path}: the file is empty; expected a header line with {','.join(columns)}") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise LunaError(f"{path}: not a CSV table ({' '.join(str(error).split())})") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise LunaError(
            f"{path}: no column {', '.join(map(repr, missing))} in its header line, {','.join(map(str, table.columns))}"
        )
    text = [*text, *(column for column in optional if column in table.columns)]
    table = table[[*text, *numeric]]
    # Blank lines are kept while reading, so that row i is line i + 2 of the file in the messages below.
    table = table[~table.isna().all(axis=1)]
    for column in text:
        blank = [value for value in table[column].dropna().unique() if not value.strip()]
        empty = table[column].isna() | table[column].isin(blank)
        if empty.any():
            raise LunaError(f"{path}, line {table.index[empty][0] + 2}: no value for {column!r}")
    for column in numeric:
        values = table[column]
        numbers = values if pd.api.types.is_numeric_dtype(values) else pd.to_numeric(values, errors="coerce")
        bad = ~np.isfinite(numbers.to_numpy(dtype=float))
        if bad.any():
            row = table.index[bad][0]
            found = "nothing" if pd.isna(values.loc[row]) else repr(str(values.loc[row]))
            raise LunaError(f"{path}, line {row + 2}: {column!r} must be a number, found {found}")
        table = table.assign(**{column: numbers.astype(float)})
    return table.reset_index(drop=True)
