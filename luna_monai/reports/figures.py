"""Figures as matplotlib objects without pyplot's global state, as PNG or as SVG that takes on a page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from luna_monai.metrics.froc import CONFIDENCE, FALSE_POSITIVES_PER_SCAN, FrocResult, rate_name

#: Colour of each role on a light page. In :func:`to_svg` each becomes the CSS variable of its name, so that a page can
#: set others when it is dark. No two roles may share a colour.
COLOURS = {
    "surface": "#fefefe",
    "ink": "#1c2430",
    "muted": "#5c6773",
    "grid": "#d8dee6",
    "all": "#6b4fa0",
    "neg": "#1f6fb4",
    "pos": "#c4501b",
}
_SIZE_INCHES = (4.6, 3.5)
_CLASS_NAMES = {"all": "all", "neg": "non-nodules", "pos": "nodules"}


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
        The ``<svg>`` element. Its text is text, its colours are CSS variables (``var(--ink)`` …), and it is hidden
        from screen readers: the page describes it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", svg)
    for role, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{role})")
    return svg


def froc_figure(result: FrocResult, title: str | None = None) -> Figure:
    """Plot sensitivity against false positives per scan from 1/8 to 8, with the bootstrap interval if there is one.

    Args:
        result: the evaluation.
        title: above the plot, if any.

    Returns:
        The figure.
    """
    figure, axes = _new_figure(title)
    rates = np.asarray(FALSE_POSITIVES_PER_SCAN)
    x, y = result.curve["false_positives_per_scan"], result.curve["sensitivity"]
    # The axis is logarithmic, along which straight lines between corners would be bent: draw them densely.
    dense = np.exp2(np.linspace(-3, 3, 400))
    if result.nodules:
        if result.interval is not None:
            interval = result.interval
            axes.fill_between(
                interval.curve["false_positives_per_scan"],
                interval.curve["lower"],
                interval.curve["upper"],
                color=COLOURS["neg"],
                alpha=0.2,
                linewidth=0,
                label=f"{100 * CONFIDENCE:g} % of {interval.samples:,} bootstrap samples",
            )
        axes.plot(dense, np.interp(dense, x, y), color=COLOURS["neg"], label=f"CPM {result.cpm:.3f}")
        axes.plot(rates, result.sensitivity, "o", color=COLOURS["neg"], markersize=4)
        _legend(axes, "lower right")
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.125, 8)
    axes.xaxis.set_major_locator(FixedLocator(list(rates)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_name(rate)))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false positives per scan")
    axes.set_ylabel("sensitivity")
    return figure


def roc_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot the ROC curve of candidates of both classes, and where a threshold lies on it."""
    figure, axes = _new_figure()
    false_positive_rate, sensitivity, _ = roc_curve(is_nodule, probability)
    area = auc(false_positive_rate, sensitivity)
    axes.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=1)
    axes.plot(false_positive_rate, sensitivity, color=COLOURS["neg"], label=f"area {area:.4f}")
    positive = probability > threshold
    axes.plot(
        positive[~is_nodule].mean(), positive[is_nodule].mean(), "o", color=COLOURS["pos"], label=f"at {threshold:g}"
    )
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.set_xlabel("share of non-nodules called nodule")
    axes.set_ylabel("sensitivity")
    _legend(axes, "lower right")
    return figure


def precision_recall_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot precision against recall, and where a threshold lies on it."""
    figure, axes = _new_figure()
    precision, recall, _ = precision_recall_curve(is_nodule, probability, drop_intermediate=True)
    area = average_precision_score(is_nodule, probability)
    share = is_nodule.mean()
    axes.axhline(share, linestyle=":", color=COLOURS["muted"], linewidth=1, label=f"by chance {share:.3g}")
    axes.step(recall, precision, where="post", color=COLOURS["neg"], label=f"average precision {area:.4f}")
    positive = probability > threshold
    if positive.any():
        axes.plot(
            positive[is_nodule].mean(), is_nodule[positive].mean(), "o", color=COLOURS["pos"], label=f"at {threshold:g}"
        )
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.set_xlabel("recall (sensitivity)")
    axes.set_ylabel("precision")
    _legend(axes, "lower left")
    return figure


def reliability_figure(reliability: Mapping[str, Any]) -> Figure:
    """Plot the share of nodules against the mean probability of each bin, with 95 % Wilson intervals."""
    figure, axes = _new_figure()
    names = ("mean_probability", "positive_share", "lower", "upper")
    x, y, lower, upper = (np.asarray(reliability[name]) for name in names)
    axes.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=1, label="calibrated")
    axes.errorbar(
        x,
        y,
        yerr=np.clip([y - lower, upper - y], 0, None),
        fmt="o-",
        color=COLOURS["neg"],
        elinewidth=1,
        capsize=2,
        markersize=4,
        label=f"expected calibration error {reliability['expected_calibration_error']:.4f}",
    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("predicted probability of a nodule")
    axes.set_ylabel("share that are nodules")
    _legend(axes, "upper left")
    return figure


def histogram_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot how many candidates of each class have which probability, on a logarithmic scale."""
    figure, axes = _new_figure()
    edges = np.linspace(0, 1, 51).tolist()
    for role, chosen in (("neg", ~is_nodule), ("pos", is_nodule)):
        axes.hist(
            probability[chosen],
            bins=edges,
            histtype="stepfilled",
            facecolor=(COLOURS[role], 0.25),
            edgecolor=COLOURS[role],
            linewidth=1.2,
            label=f"{chosen.sum():,} {_CLASS_NAMES[role]}",
        )
    axes.axvline(threshold, linestyle="--", color=COLOURS["muted"], linewidth=1, label=f"threshold {threshold:g}")
    axes.set_yscale("log")
    # Room above the highest bar for the legend, on a scale of decades.
    highest = axes.get_ylim()[1]
    axes.set_ylim(0.7, highest * (highest / 0.7) ** 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("predicted probability of a nodule")
    axes.set_ylabel("candidates per bin of 0.02")
    _legend(axes, "upper center")
    return figure


def class_curves_figure(metrics: pd.DataFrame, quantity: str, best_epoch: int | None = None) -> Figure:
    """Plot a quantity of each class over the epochs, training dashed and validation solid.

    Args:
        metrics: rows of ``metrics.csv``: ``epoch``, ``split``, and ``{quantity}/all``, ``/neg`` and ``/pos``.
        quantity: ``loss`` (drawn on a logarithmic scale) or ``correct``.
        best_epoch: marked by a line.

    Returns:
        The figure.
    """
    columns = {f"{quantity}/{role}": (role, name) for role, name in _CLASS_NAMES.items()}
    figure, axes = _epoch_figure(metrics, columns, best_epoch)
    if quantity == "loss" and (metrics.reindex(columns=list(columns)) > 0).any(axis=None):
        axes.set_yscale("log")
        # Plain numbers; by default a short logarithmic axis has labels such as 6 x 10^-1.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def summary_curves_figure(metrics: pd.DataFrame, names: Mapping[str, str], best_epoch: int | None = None) -> Figure:
    """Plot up to three numbers between 0 and 1 over the epochs, training dashed and validation solid.

    Args:
        metrics: rows of ``metrics.csv``.
        names: what to call each column.
        best_epoch: marked by a line.

    Returns:
        The figure.
    """
    columns = {column: (role, name) for (column, name), role in zip(names.items(), ("neg", "pos", "all"), strict=False)}
    figure, axes = _epoch_figure(metrics, columns, best_epoch)
    axes.set_ylim(-0.02, 1.02)
    return figure


def _epoch_figure(
    metrics: pd.DataFrame, columns: Mapping[str, tuple[str, str]], best_epoch: int | None
) -> tuple[Figure, Axes]:
    figure, axes = _new_figure()
    for split, part, style, width in (("trn", "training", "--", 1.1), ("val", "validation", "-", 1.7)):
        rows = metrics[metrics["split"] == split]
        for column, (role, name) in columns.items():
            # A point between two undefined ones is no line: with few epochs every point is marked.
            if column in rows and rows[column].notna().any():
                axes.plot(
                    rows["epoch"],
                    rows[column],
                    style,
                    color=COLOURS[role],
                    marker="o" if len(rows) < 25 else None,
                    markersize=3,
                    linewidth=width,
                    label=f"{name}, {part}",
                )
    if axes.lines:
        legend_rows = math.ceil(len(axes.lines) / 2)
        axes.set_position((0.17, 0.15, 0.8, 0.81 - 0.055 * legend_rows))
        figure.legend(
            loc="upper center", ncols=2, frameon=False, fontsize=9, labelcolor=COLOURS["ink"], handlelength=2.4
        )
    if best_epoch is not None:
        axes.axvline(best_epoch, color=COLOURS["muted"], linestyle=":", linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    return figure, axes


def _new_figure(title: str | None = None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_INCHES, facecolor=COLOURS["surface"])
    # Fixed margins, wide enough for the labels of logarithmic axes: a layout engine takes longer than the drawing.
    axes = figure.add_axes((0.17, 0.15, 0.8, 0.75 if title else 0.82), facecolor=COLOURS["surface"])
    axes.grid(color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(COLOURS["muted"])
    axes.tick_params(which="both", colors=COLOURS["muted"], labelcolor=COLOURS["ink"], labelsize=10)
    axes.xaxis.label.set(color=COLOURS["ink"], fontsize=11)
    axes.yaxis.label.set(color=COLOURS["ink"], fontsize=11)
    if title:
        axes.set_title(title, color=COLOURS["ink"], fontsize=11)
    return figure, axes


def _legend(axes: Axes, location: Literal["lower left", "lower right", "upper left", "upper center"]) -> None:
    axes.legend(
        loc=location,
        frameon=True,
        facecolor=COLOURS["surface"],
        edgecolor="none",
        framealpha=0.8,
        fontsize=9,
        labelcolor=COLOURS["ink"],
    )
