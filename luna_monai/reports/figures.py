"""Figures as matplotlib objects without pyplot's global state, as PNG or as SVG that takes on a page's colors."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from luna_monai.metrics.froc import CONFIDENCE, FALSE_POSITIVES_PER_SCAN, FrocResult, rate_name

#: Color of each role on a light page. In :func:`to_svg` each becomes the CSS variable of its name, so that a page can
#: set others when it is dark. No two roles may share a color.
COLORS = {
    "surface": "#fefefe",
    "ink": "#1c2430",
    "muted": "#5c6773",
    "grid": "#d8dee6",
    "all": "#6b4fa0",
    "neg": "#1f6fb4",
    "pos": "#c4501b",
}
_DOTTED: dict[str, Any] = {"linestyle": ":", "color": COLORS["muted"], "linewidth": 1}
_WHOLE = (-0.02, 1.02)


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Draw a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """Draw a figure as an SVG element to be put into a page.

    Args:
        figure: the figure.
        name: unique on the page; all identifiers begin with it.

    Returns:
        The ``<svg>`` element. Its text is text, its colors are CSS variables (``var(--ink)`` …), and it is hidden
        from screen readers: the page describes it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for pattern, replacement in {
        r"(?s)<metadata>.*?</metadata>": "",
        r'^(<svg[^>]*?) width="[^"]*"': r"\1",
        r'^(<svg[^>]*?) height="[^"]*"': r"\1",
        r"^<svg": '<svg aria-hidden="true" focusable="false"',
        r'\bid="': f'id="{name}-',
        r"url\(#": f"url(#{name}-",
        'href="#': f'href="#{name}-',
        r"font: ([\d.]+)px [^;\"]*": r"font: \1px system-ui, sans-serif",
        **{color: f"var(--{role})" for role, color in COLORS.items()},
    }.items():
        svg = re.sub(pattern, replacement, svg)
    return svg


def froc_figure(result: FrocResult, title: str = "", parts: Iterable[FrocResult] = ()) -> Figure:
    """Plot sensitivity against false positives per scan from 1/8 to 8.

    Args:
        result: an evaluation; its bootstrap interval is drawn if there is one.
        title: of the figure.
        parts: evaluations of folds, drawn as thin lines.
    """
    figure, axes = _new_figure("false positives per scan", "sensitivity", title)
    # The axis is logarithmic, along which straight lines between corners would be bent: draw them densely.
    dense = np.exp2(np.linspace(-3, 3, 400))

    def plot(one: FrocResult, **style: Any) -> None:
        curve = one.curve
        axes.plot(dense, np.interp(dense, curve["false_positives_per_scan"], curve["sensitivity"]), **style)

    for number, part in enumerate(part for part in parts if part.nodules):
        label = "_" if number else "each fold"
        plot(part, color=COLORS["muted"], linewidth=0.8, alpha=0.6, zorder=1, label=label)
    if result.nodules:
        if result.interval is not None:
            band = result.interval.drop("cpm")[["lower", "upper"]]
            label = f"{CONFIDENCE:.0%} of {result.samples:,} bootstrap samples"
            axes.fill_between(
                FALSE_POSITIVES_PER_SCAN, *band.to_numpy().T, color=COLORS["neg"], alpha=0.2, linewidth=0, label=label
            )
        plot(result, color=COLORS["neg"], label=f"CPM {result.cpm:.3f}")
        axes.plot(FALSE_POSITIVES_PER_SCAN, result.sensitivity, "o", color=COLORS["neg"], markersize=4)
        _legend(axes, "lower right")
    axes.set_xscale("log", base=2)
    axes.set_xticks(FALSE_POSITIVES_PER_SCAN, [*map(rate_name, FALSE_POSITIVES_PER_SCAN)])
    axes.minorticks_off()
    axes.set(xlim=(0.125, 8), ylim=(0, 1.02))
    return figure


def ranking_figures(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> tuple[Figure, Figure]:
    """Plot the ROC curve and the precision-recall curve of candidates of both classes, and a threshold on them."""
    called = probability > threshold
    recall, figures = called[is_nodule].mean(), []
    for display, mark in (
        (RocCurveDisplay, (called[~is_nodule].mean(), recall)),
        (PrecisionRecallDisplay, (recall, is_nodule[called].mean() if called.any() else np.nan)),
    ):
        figure, axes = _new_figure()
        display.from_predictions(is_nodule, probability, ax=axes, plot_chance_level=True, chance_level_kw=_DOTTED)
        axes.plot(*mark, "o", color=COLORS["pos"], label=f"at {threshold:g}")
        _legend(axes, "lower left" if display is PrecisionRecallDisplay else "lower right")
        figures.append(figure)
    return figures[0], figures[1]


def reliability_figure(reliability: Mapping[str, Any]) -> Figure:
    """Plot the share of nodules against the mean probability of each bin, with 95 % Wilson intervals."""
    names = ("mean_probability", "positive_share", "lower", "upper")
    x, y, lower, upper = (np.asarray(reliability[name]) for name in names)
    title = f"expected calibration error {reliability['expected_calibration_error']:.4f}"
    figure, axes = _new_figure("predicted probability of a nodule", "observed share of nodules", title)
    axes.plot([0, 1], [0, 1], label="calibrated", **_DOTTED)
    axes.errorbar(x, y, np.clip([y - lower, upper - y], 0, None), fmt="o-", capsize=2, markersize=4)
    axes.set(xlim=_WHOLE, ylim=_WHOLE)
    _legend(axes, "upper left")
    return figure


def epoch_figure(metrics: pd.DataFrame, columns: Sequence[str], best_epoch: int | None) -> Figure:
    """Plot quantities over the epochs, training dashed and validation solid.

    Args:
        metrics: rows of ``metrics.csv``.
        columns: at most three columns; their names end with what tells them apart.
        best_epoch: marked by a line.

    Returns:
        The figure; losses have a logarithmic scale.
    """
    figure, axes = _new_figure("epoch")
    for split, part, style in (("trn", "training", "--"), ("val", "validation", "-")):
        rows = metrics[metrics["split"] == split]
        for role, column in zip(("all", "neg", "pos"), columns, strict=False):
            if rows[column].notna().any():
                look: dict[str, Any] = {"color": COLORS[role], "label": f"{short_name(column)}, {part}"}
                # A point between two undefined ones is no line: with few epochs every point is marked.
                axes.plot(rows["epoch"], rows[column], style, marker="o" if len(rows) < 25 else None, **look)
    if best_epoch is not None:
        axes.axvline(best_epoch, **_DOTTED)
    values = metrics[list(columns)]
    if "loss/all" in columns and (values > 0).any(axis=None):
        axes.set_yscale("log")
    elif not (values > 1).any(axis=None):
        axes.set_ylim(_WHOLE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _legend(axes, "best")
    return figure


def short_name(column: str) -> str:
    """Give the name of a quantity among those of one chart: ``loss/pos`` is ``pos``."""
    return column.rpartition("/")[2].replace("_", " ")


def _new_figure(xlabel: str = "", ylabel: str = "", title: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.5), facecolor=COLORS["surface"])
    # Fixed margins, wide enough for the labels of logarithmic axes: a layout engine takes longer than the drawing.
    axes = figure.add_axes((0.17, 0.15, 0.8, 0.75 if title else 0.82), facecolor=COLORS["surface"])
    axes.set_prop_cycle(color=[COLORS["neg"]])
    axes.grid(color=COLORS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=COLORS["muted"])
    axes.tick_params(which="both", colors=COLORS["muted"], labelcolor=COLORS["ink"], labelsize=10)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(color=COLORS["ink"], fontsize=11)
    return figure, axes


def _legend(axes: Axes, location: Any) -> None:
    look: dict[str, Any] = {"facecolor": COLORS["surface"], "edgecolor": "none", "framealpha": 0.8, "fontsize": 9}
    axes.legend(loc=location, labelcolor=COLORS["ink"], **look)
