"""Reading of CSV tables with different separators, encodings and column names."""

import csv
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.errors import LunaError

#: Other names of columns, in lower case.
ALIASES = {"seriesinstanceuid": "seriesuid", "series_uid": "seriesuid"}
_EXTRA = "\0extra"  # column for fields beyond those of the header line
#: Options that make pandas read the nearest float64, which is the default from pandas 3.1 on.
EXACTLY: dict[str, Any] = (
    {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
)


def read_table(
    path: str | Path,
    numeric: Sequence[str],
    text: Sequence[str] = ("seriesuid",),
    optional: Sequence[str] = (),
    allowed: Mapping[str, tuple[Callable[[pd.Series], pd.Series], str]] = MappingProxyType({}),
) -> pd.DataFrame:
    """Read a CSV file with a header line and check the values of the requested columns.

    Fields are separated by commas, semicolons or tabs; with semicolons, numbers may have a decimal comma. Column names
    are case-insensitive, and ``SeriesInstanceUID`` is read as ``seriesuid``. Whitespace around names and text is
    removed. The encoding is UTF-8 or Latin-1.

    Args:
        path: the CSV file.
        numeric: columns that must contain finite numbers, which are read as the nearest float64.
        text: columns that must contain non-empty text.
        optional: text columns that may be missing from the file.
        allowed: for numeric columns, a function that tells which values of a column are allowed, and a description of
            these values.

    Returns:
        The ``text``, ``optional`` and ``numeric`` columns, in this order, indexed by their lines in the file.

    Raises:
        LunaError: when the file is missing, empty, not a CSV table, lacks a column, or a value is missing or not
            allowed; the message names the file and the line.
    """
    path = Path(path)
    stream = io.StringIO(_decode(path), newline=None)
    line, header = next(((line, text) for line, text in enumerate(stream, 1) if text.strip(" \t\n,;")), (0, ""))
    if not header:
        raise LunaError(f"{path}: the file is empty; expected a header line with {','.join([*text, *numeric])}")
    separator = max(",;\t", key=header.count)
    found = [name.strip() for name in next(csv.reader([header.strip("\n")], delimiter=separator))]
    wanted = {column.lower(): column for column in [*text, *numeric, *optional]}
    wanted |= {alias: wanted[name] for alias, name in ALIASES.items() if name in wanted}
    # Other columns may have any name, and may share one.
    names = [wanted.get(name.lower(), f"\0{place}") for place, name in enumerate(found)]
    if twice := [column for column in wanted.values() if names.count(column) > 1]:
        raise LunaError(f"{path}, line {line}: several columns for {twice[0]!r}, found {','.join(found)[:200]}")
    if missing := [column for column in [*text, *numeric] if column not in names]:
        absent = ", ".join(map(repr, missing))
        raise LunaError(f"{path}: no column {absent} in the header line, found {','.join(found)[:200]}")
    texts = [*text, *(column for column in optional if column in names)]
    table = _parse(path, stream, line, separator, names, texts)
    table.index += line + 1  # the index is the line number, so blank lines are removed afterwards
    table = table[table.notna().any(axis=1)]

    def check(wrong: pd.Series, column: str, message: str) -> None:
        if wrong.any():
            line = wrong.index[wrong][0]
            (value,) = table.loc[[line], column].tolist()
            shown = "nothing" if pd.isna(value) else repr(value)
            raise LunaError(f"{path}, line {line}: {message}, found {shown}")

    check(table[_EXTRA].notna(), _EXTRA, f"more fields than the {len(found)} of the header line")
    for column in texts:
        table[column] = table[column].str.strip()
        check(table[column].isna() | (table[column] == ""), column, f"no value for {column!r}")
    for column in numeric:
        numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
        check(~pd.Series(np.isfinite(numbers)), column, f"{column!r} must be a number")
        is_allowed, description = allowed.get(column, (np.isfinite, ""))
        check(~pd.Series(is_allowed(numbers)), column, f"{column!r} must be {description}")
        table[column] = numbers
    return table[[*texts, *numeric]]


def _decode(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise LunaError(f"{path}: {reason}") from None
    if b"\0" in content:
        raise LunaError(f"{path}: not a CSV table (it holds binary data); save it as CSV in UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _parse(
    path: Path, stream: io.StringIO, line: int, separator: str, names: Sequence[str], text: Sequence[str]
) -> pd.DataFrame:
    """Read the lines after the header; an additional column holds the fields beyond those of the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                stream,
                sep=separator,
                decimal="," if separator == ";" and "," in stream.getvalue() else ".",
                header=None,
                names=[*names, _EXTRA],
                index_col=False,
                dtype=dict.fromkeys([*(name for name in names if name in text or name[0] == "\0"), _EXTRA], str),
                skip_blank_lines=False,
                skipinitialspace=True,
                low_memory=False,
                **EXACTLY,
            )
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=[*names, _EXTRA], dtype=str)
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = re.sub(r"line (\d+)", lambda found: f"line {int(found[1]) + line}", " ".join(str(error).split()))
        raise LunaError(f"{path}: not a CSV table ({reason})") from None
