"""The book's metrics by class (chapters 11.6 and 12.4), and the two areas under curves."""

from __future__ import annotations

from typing import Any

import numpy as np

#: What chapter 11 logs.
BOOK_METRICS = ("loss/all", "loss/neg", "loss/pos", "correct/all", "correct/neg", "correct/pos")

#: Where to find how good the ranking and the decisions are.
RANKING_METRICS = ("pr/precision", "pr/recall", "pr/f1_score", "roc_auc", "average_precision")

#: Numbers of samples, which console lines show beside percentages.
COUNTS = ("count/neg", "count/pos", "correct_count/neg", "correct_count/pos")

#: Everything that :func:`per_class_metrics` returns, in this order.
METRIC_NAMES = BOOK_METRICS + RANKING_METRICS + COUNTS


def per_class_metrics(label: Any, probability: Any, loss: Any, threshold: float = 0.5) -> dict[str, float]:
    """Compute losses, percentages of correct decisions and ranking metrics of a set of samples.

    Args:
        label: (N,) class of each sample, 0 or 1; anything that ``numpy.asarray`` takes.
        probability: (N,) probability of class 1.
        loss: (N,) loss of each sample.
        threshold: a probability above it is a decision for class 1; one equal to it is not, as in the book.

    Returns:
        The values of ``METRIC_NAMES``: mean losses, percentages (0 to 100), precision, recall and F1 of class 1, areas
        under the ROC and the precision-recall curve (0 to 1), and counts. What is undefined is NaN: means and
        percentages of a class without samples, precision when nothing is called positive, and areas when a class is
        absent or a probability is not finite.
    """
    # Prediction imports this module, and has no use for scikit-learn.
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
    both = positive.any() and not positive.all()
    ranked = both and bool(np.isfinite(probability).all())
    values["pr/precision"] = _mean(positive[called])
    values["pr/recall"] = _mean(called[positive])
    values["pr/f1_score"] = float(f1_score(positive, called)) if positive.any() else float("nan")
    values["roc_auc"] = float(roc_auc_score(positive, probability)) if ranked else float("nan")
    values["average_precision"] = float(average_precision_score(positive, probability)) if ranked else float("nan")
    return {name: values[name] for name in METRIC_NAMES}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
