"""The parts that pages are made of, and how numbers are written on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from luna_monai import __version__
from luna_monai.reports.pictures import Stack


@dataclass(frozen=True)
class Table:
    """A table that sorts.

    Attributes:
        caption: above it.
        frame: its rows.
        columns: title of each column of ``frame`` that is shown, and how :func:`show` writes its values; without a
            format they are text, and sort as text.
        note: below it.
    """

    caption: str
    frame: pd.DataFrame
    columns: Mapping[str, tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure, and a sentence that describes it."""

    title: str
    svg: Markup
    text: str


@dataclass(frozen=True)
class Case:
    """A candidate in pictures: its title, names and values, its planes, and a label for each axial slice."""

    title: str
    facts: Mapping[str, str]
    stacks: Sequence[Stack]
    labels: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    cases: Sequence[Case] = ()
    note: str = ""


def show(value: Any, spec: str = "") -> str:
    """Write a value: text as it is, a number by Python's format specification or as a ``probability``."""
    if value is None or pd.isna(value):
        return "n/a"
    if not spec:
        return str(value)
    if math.isinf(value):
        return "none"
    if spec == "probability":
        if 0.9999 < value < 1 or 0 < value < 0.0001:
            return "over 0.9999" if value > 0.5 else "below 0.0001"
        spec = ".4f"
    return format(value, spec)


def sort_key(value: Any) -> float:
    """Give the number that sorts a cell; undefined values are below all others."""
    return -1e308 if value is None or pd.isna(value) else min(float(value), 1e308)


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
    environment.filters |= {"show": show, "sort_key": sort_key}
    return environment.get_template(template).render(version=__version__, **values)
