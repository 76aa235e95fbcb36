"""The charts of a report, each with a sentence that says in words what it shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from luna_monai.metrics.froc import CONFIDENCE, FrocResult
from luna_monai.reports.figures import (
    class_curves_figure,
    froc_figure,
    histogram_figure,
    precision_recall_figure,
    reliability_figure,
    roc_figure,
    summary_curves_figure,
    to_svg,
)
from luna_monai.reports.layout import Chart, format_number, format_percent


def training_charts(metrics: pd.DataFrame, best_epoch: int | None) -> list[Chart]:
    """Draw loss and correct decisions by class, ranking and detection over the epochs.

    Args:
        metrics: rows of ``metrics.csv``.
        best_epoch: the epoch whose weights and predictions were kept, if it is known.

    Returns:
        The charts for which there are columns.
    """
    charts = []
    for quantity, title in (("loss", "Mean cross entropy, by class"), ("correct", "Correct decisions in %, by class")):
        if metrics.reindex(columns=[f"{quantity}/{role}" for role in ("all", "neg", "pos")]).notna().any(axis=None):
            figure = class_curves_figure(metrics, quantity, best_epoch)
            unit = " %" if quantity == "correct" else ""
            words = _class_sentence(metrics, quantity, best_epoch, unit)
            charts.append(_chart(figure, f"epochs-{quantity}", title, words))
    for name, title, columns, names in (
        (
            "ranking",
            "Ranking",
            ["roc_auc", "average_precision", "cpm"],
            ["ROC AUC", "average precision", "CPM"],
        ),
        (
            "detection",
            "Detection at 0.5",
            ["pr/precision", "pr/recall", "pr/f1_score"],
            ["precision", "recall", "F1"],
        ),
    ):
        present = [(column, label) for column, label in zip(columns, names, strict=True) if column in metrics]
        if present and metrics[[column for column, _ in present]].notna().any(axis=None):
            figure = summary_curves_figure(metrics, dict(present), best_epoch)
            row = _row(metrics, "val", best_epoch)
            parts = [f"{label} {format_number(row[column], 3)}" for column, label in present] if row is not None else []
            charts.append(_chart(figure, f"epochs-{name}", title, f"{_when(best_epoch)}: {', '.join(parts)}."))
    return charts


def ranking_charts(validation: pd.DataFrame, froc: FrocResult | None, threshold: float) -> list[Chart]:
    """Draw ROC, precision-recall and FROC curves of the validation predictions.

    Args:
        validation: the validation predictions.
        froc: LUNA16's evaluation, None without annotations.
        threshold: the probability above which a candidate is called a nodule.

    Returns:
        The charts that the data allow; ROC and precision-recall need both classes.
    """
    charts = []
    is_nodule, probability = validation["class"].to_numpy(), validation["probability"].to_numpy()
    if is_nodule.any() and not is_nodule.all():
        words = (
            f"The area under the curve is {roc_auc_score(is_nodule, probability):.4f}: the chance that a nodule gets "
            "a higher probability than a non-nodule."
        )
        charts.append(_chart(roc_figure(is_nodule, probability, threshold), "roc", "ROC, by candidate", words))
        words = (
            f"The average precision is {average_precision_score(is_nodule, probability):.4f}; guessing would give "
            f"{is_nodule.mean():.3g}, the share of nodules among the candidates."
        )
        figure = precision_recall_figure(is_nodule, probability, threshold)
        charts.append(_chart(figure, "pr", "Precision and recall, by candidate", words))
    if froc is not None and froc.nodules:
        words = (
            f"Of {froc.nodules:,} annotated nodules in {froc.scans:,} scan{'s' * (froc.scans != 1)}, "
            f"{format_percent(froc.sensitivity[3])} are found at 1 false positive per scan and "
            f"{format_percent(froc.sensitivity[5])} at 4. {cpm_sentence(froc)}"
        )
        charts.append(_chart(froc_figure(froc), "froc", "FROC, by annotated nodule, as LUNA16 computes it", words))
    return charts


def calibration_charts(validation: pd.DataFrame, reliability: dict[str, Any], threshold: float) -> list[Chart]:
    """Draw the reliability curve and the probabilities of each class.

    Args:
        validation: the validation predictions.
        reliability: their reliability curve.
        threshold: the probability above which a candidate is called a nodule.

    Returns:
        Two charts.
    """
    is_nodule, probability = validation["class"].to_numpy(), validation["probability"].to_numpy()
    words = (
        f"The mean predicted probability is {probability.mean():.4f}, the share of nodules {is_nodule.mean():.4f}. "
        "Points below the dotted line: the model promises more nodules than there are. Bars are 95 % intervals."
    )
    medians = [
        f"{name} {np.median(probability[chosen]):.3g}"
        for name, chosen in (("non-nodules", ~is_nodule), ("nodules", is_nodule))
        if chosen.any()
    ]
    return [
        _chart(reliability_figure(reliability), "reliability", "Reliability", words),
        _chart(
            histogram_figure(is_nodule, probability, threshold),
            "histogram",
            "Probabilities by class",
            f"Median probability: {', '.join(medians)}.",
        ),
    ]


def cpm_sentence(froc: FrocResult) -> str:
    """Say the CPM, and its interval if there is one."""
    words = f"CPM {format_number(froc.cpm, 3)}"
    if froc.interval is not None:
        lower, upper = (format_number(end, 3) for end in (froc.interval.cpm["lower"], froc.interval.cpm["upper"]))
        words += f" ({format_percent(CONFIDENCE, 0)} interval {lower} to {upper})"
    return words + "."


def _class_sentence(metrics: pd.DataFrame, quantity: str, best_epoch: int | None, unit: str) -> str:
    row = _row(metrics, "val", best_epoch)
    if row is None:
        return "There is no validation."
    digits = 2 if unit else 4
    parts = [
        f"{name} {format_number(row.get(f'{quantity}/{role}', np.nan), digits)}{unit}"
        for role, name in (("all", "all"), ("neg", "non-nodules"), ("pos", "nodules"))
    ]
    return f"{_when(best_epoch)}: {', '.join(parts)}."


def _row(metrics: pd.DataFrame, split: str, epoch: int | None) -> pd.Series | None:
    rows = metrics[metrics["split"] == split]
    if epoch is not None:
        rows = rows[rows["epoch"] == epoch]
    return None if rows.empty else rows.iloc[-1]


def _when(best_epoch: int | None) -> str:
    return "Validation in the last epoch" if best_epoch is None else f"Validation in epoch {best_epoch}, the one kept"


def _chart(figure: Figure, name: str, title: str, words: str) -> Chart:
    return Chart(title, Markup(to_svg(figure, f"chart-{name}")), words)  # matplotlib escapes the text it is given
