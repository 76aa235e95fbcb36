"""The parts a page is made of: numbers as text, tables that sort, charts and cases."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from luna_monai import __version__

UNDEFINED = "n/a"


@dataclass(frozen=True)
class Cell:
    """What a table shows in one place.

    Attributes:
        text: what is seen.
        sort: the number by which the column sorts; by ``text`` where it is None.
        is_number: whether ``text`` is aligned to the right.
    """

    text: str
    sort: float | None = None
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """A table with a caption and, below it, a note."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture of numbers and the sentence that says the same in words."""

    title: str
    svg: Markup
    text: str


@dataclass(frozen=True)
class Picture:
    """A plane through a candidate.

    Attributes:
        name: of the plane.
        source: the picture as a ``data:`` address.
        circle: where the nearest nodule lies in it: x, y and radius in mm; None where it does not.
    """

    name: str
    source: str
    circle: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Case:
    """A candidate in pictures.

    Attributes:
        title: in a few words.
        facts: names and values.
        pictures: its planes; empty when the CT is not at hand.
        note: why there are no pictures.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture] = field(default_factory=list)
    note: str = ""


def table(
    caption: str, frame: pd.DataFrame, columns: Mapping[str, tuple[str, Callable[[Any], Cell]]], note: str = ""
) -> Table:
    """Make a table of a frame's rows: for each of its ``columns`` the title, and the function that makes a cell.

    The pages sort by the ``data-sort`` attributes of cells, which pandas' Styler does not write.
    """
    rows = [[make(row[name]) for name, (_, make) in columns.items()] for row in frame.to_dict("records")]
    return Table(caption, [title for title, _ in columns.values()], rows, note)


def text(value: object) -> Cell:
    """Make a cell of text that sorts by itself."""
    return Cell(str(value), is_number=False)


def count(value: float) -> Cell:
    """Make a cell of a whole number."""
    return Cell(format_count(value), float(value))


def number(value: float, digits: int = 4) -> Cell:
    """Make a cell of a number with ``digits`` behind the point."""
    return Cell(format_number(value, digits), _sort_key(value))


def percent(value: float, digits: int = 1) -> Cell:
    """Make a cell of a share of 1 as a percentage."""
    return Cell(format_percent(value, digits), _sort_key(value))


def probability(value: float) -> Cell:
    """Make a cell of a probability; infinity, which no candidate reaches, is none."""
    return Cell(format_probability(value) if math.isfinite(value) else "none", value)


def interval(ends: tuple[float, float]) -> Cell:
    """Make a cell of the interval of a share."""
    lower, upper = ends
    return Cell(f"{format_percent(lower, 0)} to {format_percent(upper, 0)}", _sort_key(lower))


def format_count(value: float) -> str:
    """Write a whole number with thousands apart."""
    return f"{int(value):,}"


def format_number(value: float, digits: int = 4) -> str:
    """Write a number, or that it is undefined."""
    return f"{value:.{digits}f}" if math.isfinite(value) else UNDEFINED


def format_percent(value: float, digits: int = 1) -> str:
    """Write a share of 1 as a percentage, or that it is undefined."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else UNDEFINED


def format_probability(value: float) -> str:
    """Write a probability so that tiny ones, and those close to 1, do not become 0 or 1."""
    if 0 < value < 1e-4:
        return f"{value:.1e}"
    if 1 - 1e-4 < value < 1:
        return f"1 - {1 - value:.1e}"
    return f"{value:.4f}"


def format_point(values: Iterable[float], digits: int) -> str:
    """Write a position."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def data_address(png: bytes) -> str:
    """Turn a PNG file into an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _sort_key(value: float) -> float:
    # Undefined values sort below all others, and JSON-like attributes know no NaN.
    return float(value) if math.isfinite(value) else -1e308


def render_page(template: str, **values: Any) -> str:
    """Fill in a page.

    Args:
        template: name of the file in ``templates/``.
        values: what it shows; a name that is missing is an error.

    Returns:
        An HTML document without any reference to something outside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("luna_monai.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=__version__, **values)
