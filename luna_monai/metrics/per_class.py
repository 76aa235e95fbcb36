"""The book's metrics per class (chapters 11.6 and 12.4), and the areas under the ROC and precision-recall curves."""

from typing import Any

import numpy as np

#: Metrics that chapter 11 logs.
BOOK_METRICS = ("loss/all", "loss/neg", "loss/pos", "correct/all", "correct/neg", "correct/pos")

#: Metrics of the decisions and of the ranking.
RANKING_METRICS = ("pr/precision", "pr/recall", "pr/f1_score", "roc_auc", "average_precision")

#: Numbers of samples, which console lines show next to percentages.
COUNTS = ("count/neg", "count/pos", "correct_count/neg", "correct_count/pos")

#: All metrics that :func:`per_class_metrics` returns, in this order.
METRIC_NAMES = BOOK_METRICS + RANKING_METRICS + COUNTS


def per_class_metrics(label: Any, probability: Any, loss: Any, threshold: float = 0.5) -> dict[str, float]:
    """Compute losses, percentages of correct decisions and ranking metrics of a set of samples.

    Args:
        label: (N,) class of each sample, 0 or 1; anything that ``numpy.asarray`` accepts.
        probability: (N,) probability of class 1.
        loss: (N,) loss of each sample.
        threshold: a sample is positive if its probability is strictly above this value, as in the book.

    Returns:
        The values of ``METRIC_NAMES``: mean losses, percentages (0 to 100), precision, recall and F1 of class 1, areas
        under the ROC and the precision-recall curve (0 to 1), and counts. Undefined values are NaN: means and
        percentages of a class without samples, precision without positive samples, and areas if a class is missing or
        a probability is not finite.
    """
    # Imported here, because prediction imports this module and does not need scikit-learn.
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    probability, loss = np.asarray(probability, dtype=float), np.asarray(loss, dtype=float)
    positive, called = np.asarray(label) == 1, probability > threshold
    correct = called == positive
    values: dict[str, float] = {}
    for name, chosen in (("all", np.ones_like(positive)), ("neg", ~positive), ("pos", positive)):
        values[f"loss/{name}"] = _mean(loss[chosen])
        values[f"correct/{name}"] = 100 * _mean(correct[chosen])
        values[f"count/{name}"] = int(chosen.sum())
        values[f"correct_count/{name}"] = int(correct[chosen].sum())
    ranked = positive.any() and not positive.all() and bool(np.isfinite(probability).all())
    values["pr/precision"] = _mean(positive[called])
    values["pr/recall"] = _mean(called[positive])
    values["pr/f1_score"] = float(f1_score(positive, called)) if positive.any() else float("nan")
    values["roc_auc"] = float(roc_auc_score(positive, probability)) if ranked else float("nan")
    values["average_precision"] = float(average_precision_score(positive, probability)) if ranked else float("nan")
    return {name: values[name] for name in METRIC_NAMES}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
