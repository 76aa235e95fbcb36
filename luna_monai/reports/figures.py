"""Matplotlib figures, made without pyplot and its global state."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from luna_monai.metrics.froc import CONFIDENCE, FALSE_POSITIVES_PER_SCAN, FrocResult, rate_name

#: Colors of all candidates, of non-nodules and of nodules.
COLORS = ("#6b4fa0", "#1f6fb4", "#c4501b")


def to_bytes(figure: Figure, form: str = "png") -> bytes:
    """Render a figure as PNG, or as SVG with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150, transparent=form == "svg")
    return buffer.getvalue()


def froc_figure(result: FrocResult, folds: Iterable[FrocResult] = ()) -> Figure:
    """Plot sensitivity against false positives per scan from 1/8 to 8.

    Args:
        result: an evaluation; its bootstrap interval is drawn if there is one.
        folds: more evaluations, drawn as thin gray lines.

    Returns:
        The figure.
    """
    figure, axes = _new_axes("false positives per scan", "sensitivity")
    # Sample the curve densely: lines that are straight on a linear axis are bent on a logarithmic axis.
    dense = np.exp2(np.linspace(-3, 3, 400))
    for one in (*folds, result):
        sensitivity = np.interp(dense, one.curve["false_positives_per_scan"], one.curve["sensitivity"])
        axes.plot(dense, sensitivity, color="gray", linewidth=0.8)
    axes.lines[-1].set(color=COLORS[1], linewidth=1.5, label=f"CPM {result.cpm:.3f}")
    if result.interval is not None:
        label = f"{CONFIDENCE:.0%} interval, {result.samples:,} bootstrap samples"
        band = result.interval.drop("cpm")[["lower", "upper"]].to_numpy().T
        axes.fill_between(FALSE_POSITIVES_PER_SCAN, *band, color=COLORS[1], alpha=0.2, linewidth=0, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(FALSE_POSITIVES_PER_SCAN, [*map(rate_name, FALSE_POSITIVES_PER_SCAN)])
    axes.minorticks_off()
    axes.set(xlim=(FALSE_POSITIVES_PER_SCAN[0], FALSE_POSITIVES_PER_SCAN[-1]), ylim=(0, 1.02))
    axes.legend(loc="lower right", fontsize=9)
    return figure


def ranking_figures(is_nodule: np.ndarray, probability: np.ndarray) -> list[Figure]:
    """Plot the ROC curve and the precision-recall curve of candidates of both classes.

    Args:
        is_nodule: the class of each candidate, bool (n,).
        probability: the probability of each candidate, (n,).

    Returns:
        Both figures.
    """
    figures = []
    for display in (RocCurveDisplay, PrecisionRecallDisplay):
        figure, axes = _new_axes()
        display.from_predictions(is_nodule, probability, name="Model", ax=axes, plot_chance_level=True)
        # Without scikit-learn's "(Positive label: 1)".
        axes.set(xlabel=axes.get_xlabel().partition(" (")[0], ylabel=axes.get_ylabel().partition(" (")[0])
        figures.append(figure)
    return figures


def epoch_figure(metrics: pd.DataFrame, columns: Sequence[str], best_epoch: int | None) -> Figure:
    """Plot metrics over the epochs: dashed lines for training, solid lines for validation.

    Args:
        metrics: rows of ``metrics.csv``.
        columns: at most three columns. The last part of their names is used in the legend.
        best_epoch: epoch that is marked by a dotted line; None for no line.

    Returns:
        The figure. Losses have a logarithmic scale.
    """
    figure, axes = _new_axes("epoch", height=0.67)
    for split, style in (("trn", ".--"), ("val", ".-")):
        rows = metrics[metrics["split"] == split]
        for color, column in zip(COLORS, columns, strict=False):
            axes.plot(rows["epoch"], rows[column], style, color=color, label=f"{column.rpartition('/')[2]}, {split}")
    if best_epoch is not None:
        axes.axvline(best_epoch, linestyle=":", color="gray")
    if "loss/all" in columns and (metrics[list(columns)] > 0).any(axis=None):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # Above the axes, where it covers no line.
    axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def _new_axes(xlabel: str = "", ylabel: str = "", height: float = 0.82) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.5))
    # Fixed margins, wide enough for the labels of logarithmic axes. A layout engine would take most of the time.
    axes = figure.add_axes((0.17, 0.15, 0.8, height), xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="#d8dee6")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
