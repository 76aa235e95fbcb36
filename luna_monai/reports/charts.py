"""The charts of a report, each with a sentence that describes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score

from luna_monai.metrics.froc import CONFIDENCE, FrocResult
from luna_monai.reports import figures
from luna_monai.reports.layout import Chart, format_number, format_percent

#: Charts over the epochs: name, title, and for each column its color, its name and the digits and unit of its value.
_EPOCH_CHARTS: tuple[tuple[str, str, dict[str, tuple[str, str]], int, str], ...] = (
    (
        "loss",
        "Mean cross entropy, by class",
        {"loss/all": ("all", "all"), "loss/neg": ("neg", "non-nodules"), "loss/pos": ("pos", "nodules")},
        4,
        "",
    ),
    (
        "correct",
        "Correct decisions in %, by class",
        {"correct/all": ("all", "all"), "correct/neg": ("neg", "non-nodules"), "correct/pos": ("pos", "nodules")},
        2,
        " %",
    ),
    (
        "ranking",
        "Ranking",
        {"roc_auc": ("neg", "ROC AUC"), "average_precision": ("pos", "average precision"), "cpm": ("all", "CPM")},
        3,
        "",
    ),
    (
        "detection",
        "Detection at 0.5",
        {"pr/precision": ("neg", "precision"), "pr/recall": ("pos", "recall"), "pr/f1_score": ("all", "F1")},
        3,
        "",
    ),
)


def training_charts(metrics: pd.DataFrame, best_epoch: int | None) -> list[Chart]:
    """Draw loss and correct decisions by class, ranking and detection over the epochs.

    Args:
        metrics: rows of ``metrics.csv``.
        best_epoch: the epoch whose weights and predictions were kept, if it is known.

    Returns:
        The charts for which there are columns.
    """
    charts = []
    rows = metrics[(metrics["split"] == "val") & ((metrics["epoch"] == best_epoch) | (best_epoch is None))]
    when = "the last epoch" if best_epoch is None else f"epoch {best_epoch}, the one kept"
    for name, title, all_columns, digits, unit in _EPOCH_CHARTS:
        columns = {column: look for column, look in all_columns.items() if column in metrics}
        if not metrics[list(columns)].notna().any(axis=None):
            continue
        log = name == "loss" and bool((metrics[list(columns)] > 0).any(axis=None))
        figure = figures.epoch_figure(metrics, columns, best_epoch, log=log)
        if name in ("ranking", "detection"):
            figure.axes[0].set_ylim(-0.02, 1.02)
        words = "There is no validation."
        if len(rows):
            parts = [
                f"{label} {format_number(rows[column].iloc[-1], digits)}{unit}"
                for column, (_, label) in columns.items()
            ]
            words = f"Validation in {when}: {', '.join(parts)}."
        charts.append(_chart(figure, f"epochs-{name}", title, words))
    return charts


def ranking_charts(validation: pd.DataFrame, froc: FrocResult | None, threshold: float) -> list[Chart]:
    """Draw ROC, precision-recall and FROC curves of the validation predictions.

    Args:
        validation: the validation predictions.
        froc: LUNA16's evaluation, None without annotated nodules.
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
        figure = figures.roc_figure(is_nodule, probability, threshold)
        charts.append(_chart(figure, "roc", "ROC, by candidate", words))
        words = (
            f"The average precision is {average_precision_score(is_nodule, probability):.4f}; guessing would give "
            f"{is_nodule.mean():.3g}, the share of nodules among the candidates."
        )
        figure = figures.precision_recall_figure(is_nodule, probability, threshold)
        charts.append(_chart(figure, "pr", "Precision and recall, by candidate", words))
    if froc is not None:
        charts.append(froc_chart(figures.froc_figure(froc), froc))
    return charts


def froc_chart(figure: Figure, froc: FrocResult) -> Chart:
    """Describe the FROC curve of a figure."""
    words = (
        f"Of {froc.nodules:,} annotated nodules in {froc.scans:,} scan{'s' * (froc.scans != 1)}, "
        f"{format_percent(froc.sensitivity[3])} are found at 1 false positive per scan and "
        f"{format_percent(froc.sensitivity[5])} at 4. {cpm_sentence(froc)}"
    )
    return _chart(figure, "froc", "FROC, by annotated nodule, as LUNA16 computes it", words)


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
        "Points below the dotted line: the model predicts more nodules than there are. Bars are 95 % intervals."
    )
    classes = (("non-nodules", ~is_nodule), ("nodules", is_nodule))
    medians = [f"{name} {np.median(probability[chosen]):.3g}" for name, chosen in classes if chosen.any()]
    histogram = figures.histogram_figure(is_nodule, probability, threshold)
    return [
        _chart(figures.reliability_figure(reliability), "reliability", "Reliability", words),
        _chart(histogram, "histogram", "Probabilities by class", f"Median probability: {', '.join(medians)}."),
    ]


def cpm_sentence(froc: FrocResult) -> str:
    """Say the CPM, and its interval if there is one."""
    words = f"CPM {format_number(froc.cpm, 3)}"
    if froc.interval is not None:
        lower, upper = (format_number(froc.interval.cpm[end], 3) for end in ("lower", "upper"))
        words += f" ({format_percent(CONFIDENCE, 0)} interval {lower} to {upper})"
    return words + "."


def _chart(figure: Figure, name: str, title: str, words: str) -> Chart:
    return Chart(title, Markup(figures.to_svg(figure, f"chart-{name}")), words)  # matplotlib escapes its text
