"""The book's metrics by class (chapters 11.6 and 12.4), and the two areas under curves."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

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
    label = np.asarray(label)
    probability = np.asarray(probability, dtype=float)
    loss = np.asarray(loss, dtype=float)
    positive = label == 1
    called = probability > threshold
    of_class = {"neg": ~positive, "pos": positive}
    count = {name: int(mask.sum()) for name, mask in of_class.items()}
    correct = {name: int((mask & (called == positive)).sum()) for name, mask in of_class.items()}
    true_positive = correct["pos"]
    wrong = len(label) - sum(correct.values())
    ranked = min(count.values()) > 0 and bool(np.isfinite(probability).all())
    values = {
        "loss/all": _ratio(loss.sum(), len(loss)),
        **{f"loss/{name}": _ratio(loss[mask].sum(), count[name]) for name, mask in of_class.items()},
        "correct/all": 100 * _ratio(sum(correct.values()), len(label)),
        **{f"correct/{name}": 100 * _ratio(correct[name], count[name]) for name in of_class},
        "pr/precision": _ratio(true_positive, int(called.sum())),
        "pr/recall": _ratio(true_positive, count["pos"]),
        "pr/f1_score": _ratio(2 * true_positive, 2 * true_positive + wrong) if count["pos"] else float("nan"),
        "roc_auc": float(roc_auc_score(positive, probability)) if ranked else float("nan"),
        "average_precision": float(average_precision_score(positive, probability)) if ranked else float("nan"),
        **{f"count/{name}": count[name] for name in of_class},
        **{f"correct_count/{name}": correct[name] for name in of_class},
    }
    return {name: values[name] for name in METRIC_NAMES}


def _ratio(numerator: float, denominator: int) -> float:
    return float(numerator) / denominator if denominator else float("nan")
