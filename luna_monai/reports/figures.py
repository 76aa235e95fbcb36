"""Figures as matplotlib objects without pyplot's global state, as PNG or as SVG that takes on a page's colors.

scikit-learn's display classes are not used for the curves: they do not mark a threshold, and the arguments of ``plot``
change between their releases.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from luna_monai.metrics.froc import CONFIDENCE, FALSE_POSITIVES_PER_SCAN, FrocResult, rate_name

#: Color of each role on a light page. In :func:`to_svg` each becomes the CSS variable of its name, so that a page can
#: set others when it is dark. No two roles may share a color.
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
_DOTTED: dict[str, Any] = {"linestyle": ":", "color": COLOURS["muted"], "linewidth": 1}
_WHOLE = (-0.01, 1.02)


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
    for pattern, replacement, count in (
        (r"(?s)<metadata>.*?</metadata>", "", 1),
        (r'(<svg[^>]*?) width="[^"]*"', r"\1", 1),
        (r'(<svg[^>]*?) height="[^"]*"', r"\1", 1),
        ("<svg", '<svg aria-hidden="true" focusable="false"', 1),
        (r'\bid="', f'id="{name}-', 0),
        (r"url\(#", f"url(#{name}-", 0),
        ('href="#', f'href="#{name}-', 0),
        (r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", 0),
    ):
        svg = re.sub(pattern, replacement, svg, count=count)
    for role, color in COLOURS.items():
        svg = svg.replace(color, f"var(--{role})")
    return svg


def froc_figure(result: FrocResult, title: str | None = None) -> Figure:
    """Plot sensitivity against false positives per scan from 1/8 to 8, with the bootstrap interval if there is one."""
    figure, axes = _new_figure(title)
    if result.nodules:
        if result.interval is not None:
            rates, lower, upper = (
                result.interval.curve[name] for name in ("false_positives_per_scan", "lower", "upper")
            )
            label = f"{100 * CONFIDENCE:g} % of {result.interval.samples:,} bootstrap samples"
            axes.fill_between(rates, lower, upper, color=COLOURS["neg"], alpha=0.2, linewidth=0, label=label)
        plot_froc(axes, result, color=COLOURS["neg"], label=f"CPM {result.cpm:.3f}")
        axes.plot(FALSE_POSITIVES_PER_SCAN, result.sensitivity, "o", color=COLOURS["neg"], markersize=4)
        _legend(axes, "lower right")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(FALSE_POSITIVES_PER_SCAN)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: rate_name(rate)))
    axes.set(xlim=(0.125, 8), ylim=(0, 1.02), xlabel="false positives per scan", ylabel="sensitivity")
    return figure


def plot_froc(axes: Axes, result: FrocResult, **style: Any) -> None:
    """Add an FROC curve."""
    # The axis is logarithmic, along which straight lines between corners would be bent: draw them densely.
    dense = np.exp2(np.linspace(-3, 3, 400))
    curve = result.curve
    axes.plot(dense, np.interp(dense, curve["false_positives_per_scan"], curve["sensitivity"]), **style)


def roc_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot the ROC curve of candidates of both classes, and where a threshold lies on it."""
    figure, axes = _new_figure()
    false_positive_rate, sensitivity, _ = roc_curve(is_nodule, probability)
    label = f"area {auc(false_positive_rate, sensitivity):.4f}"
    axes.plot([0, 1], [0, 1], **_DOTTED)
    axes.plot(false_positive_rate, sensitivity, color=COLOURS["neg"], label=label)
    called = probability > threshold
    _mark(axes, called[~is_nodule].mean(), called[is_nodule].mean(), threshold)
    axes.set(xlim=(-0.01, 1.01), ylim=_WHOLE, xlabel="share of non-nodules called nodule", ylabel="sensitivity")
    _legend(axes, "lower right")
    return figure


def precision_recall_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot precision against recall, and where a threshold lies on it."""
    figure, axes = _new_figure()
    precision, recall, _ = precision_recall_curve(is_nodule, probability, drop_intermediate=True)
    label = f"average precision {average_precision_score(is_nodule, probability):.4f}"
    axes.axhline(is_nodule.mean(), label=f"by chance {is_nodule.mean():.3g}", **_DOTTED)
    axes.step(recall, precision, where="post", color=COLOURS["neg"], label=label)
    called = probability > threshold
    if called.any():
        _mark(axes, called[is_nodule].mean(), is_nodule[called].mean(), threshold)
    axes.set(xlim=(-0.01, 1.01), ylim=_WHOLE, xlabel="recall (sensitivity)", ylabel="precision")
    _legend(axes, "lower left")
    return figure


def reliability_figure(reliability: Mapping[str, Any]) -> Figure:
    """Plot the share of nodules against the mean probability of each bin, with 95 % Wilson intervals."""
    figure, axes = _new_figure()
    names = ("mean_probability", "positive_share", "lower", "upper")
    x, y, lower, upper = (np.asarray(reliability[name]) for name in names)
    axes.plot([0, 1], [0, 1], label="calibrated", **_DOTTED)
    axes.errorbar(
        x, y, yerr=np.clip([y - lower, upper - y], 0, None), fmt="o-", color=COLOURS["neg"], elinewidth=1, capsize=2,
        markersize=4, label=f"expected calibration error {reliability['expected_calibration_error']:.4f}",
    )  # fmt: skip
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set(xlabel="predicted probability of a nodule", ylabel="share that are nodules")
    _legend(axes, "upper left")
    return figure


def histogram_figure(is_nodule: np.ndarray, probability: np.ndarray, threshold: float) -> Figure:
    """Plot how many candidates of each class have which probability, on a logarithmic scale."""
    figure, axes = _new_figure()
    for role, name, chosen in (("neg", "non-nodules", ~is_nodule), ("pos", "nodules", is_nodule)):
        axes.hist(
            probability[chosen], bins=np.linspace(0, 1, 51).tolist(), histtype="stepfilled", linewidth=1.2,
            facecolor=(COLOURS[role], 0.25), edgecolor=COLOURS[role], label=f"{chosen.sum():,} {name}",
        )  # fmt: skip
    axes.axvline(threshold, linestyle="--", color=COLOURS["muted"], linewidth=1, label=f"threshold {threshold:g}")
    axes.set_yscale("log")
    # Room above the highest bar for the legend, on a scale of decades.
    highest = axes.get_ylim()[1]
    axes.set(xlim=(0, 1), ylim=(0.7, highest * (highest / 0.7) ** 0.4))
    axes.set(xlabel="predicted probability of a nodule", ylabel="candidates per bin of 0.02")
    _legend(axes, "upper center")
    return figure


def epoch_figure(
    metrics: pd.DataFrame, columns: Mapping[str, tuple[str, str]], best_epoch: int | None, *, log: bool = False
) -> Figure:
    """Plot quantities over the epochs, training dashed and validation solid.

    Args:
        metrics: rows of ``metrics.csv``.
        columns: color (a role of ``COLOURS``) and name of each column, as far as it is there.
        best_epoch: marked by a line.
        log: whether the scale is logarithmic.
    """
    figure, axes = _new_figure()
    for split, part, style, width in (("trn", "training", "--", 1.1), ("val", "validation", "-", 1.7)):
        rows = metrics[metrics["split"] == split]
        for column, (role, name) in columns.items():
            # A point between two undefined ones is no line: with few epochs every point is marked.
            if column in rows and rows[column].notna().any():
                marker = {"marker": "o", "markersize": 3} if len(rows) < 25 else {}
                look: dict[str, Any] = {"color": COLOURS[role], "linewidth": width, **marker}
                axes.plot(rows["epoch"], rows[column], style, label=f"{name}, {part}", **look)
    if axes.lines:
        axes.set_position((0.17, 0.15, 0.8, 0.81 - 0.055 * math.ceil(len(axes.lines) / 2)))
        look = {"frameon": False, "fontsize": 9, "labelcolor": COLOURS["ink"]}
        figure.legend(loc="upper center", ncols=2, handlelength=2.4, **look)
    if best_epoch is not None:
        axes.axvline(best_epoch, **_DOTTED)
    if log:
        axes.set_yscale("log")
        # Plain numbers; by default a short logarithmic axis has labels such as 6 x 10^-1.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    return figure


def _new_figure(title: str | None = None) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE_INCHES, facecolor=COLOURS["surface"])
    # Fixed margins, wide enough for the labels of logarithmic axes: a layout engine takes longer than the drawing.
    axes = figure.add_axes((0.17, 0.15, 0.8, 0.75 if title else 0.82), facecolor=COLOURS["surface"])
    axes.grid(color=COLOURS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=COLOURS["muted"])
    axes.tick_params(which="both", colors=COLOURS["muted"], labelcolor=COLOURS["ink"], labelsize=10)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set(color=COLOURS["ink"], fontsize=11)
    if title:
        axes.set_title(title, color=COLOURS["ink"], fontsize=11)
    return figure, axes


def _mark(axes: Axes, x: float, y: float, threshold: float) -> None:
    axes.plot(x, y, "o", color=COLOURS["pos"], label=f"at {threshold:g}")


def _legend(axes: Axes, location: Any) -> None:
    axes.legend(
        loc=location, frameon=True, facecolor=COLOURS["surface"], edgecolor="none", framealpha=0.8, fontsize=9,
        labelcolor=COLOURS["ink"],
    )  # fmt: skip
