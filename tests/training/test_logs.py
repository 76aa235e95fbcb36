"""Tests of luna_monai.training.logs."""

import pytest

from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.training.logs import epoch_lines


def book_lines(epoch, mode, metrics):
    """Format as the book's logMetrics does."""
    counts = {
        f"{name}_{what}": metrics[f"{key}/{name}"]
        for name in ("neg", "pos")
        for what, key in (("count", "count"), ("correct", "correct_count"))
    }
    return [
        "E{} {:8} {loss/all:.4f} loss, {correct/all:-5.1f}% correct, ".format(epoch, mode, **metrics),
        "E{} {:8} {loss/neg:.4f} loss, {correct/neg:-5.1f}% correct ({neg_correct:} of {neg_count:})".format(
            epoch, mode + "_neg", **metrics, **counts
        ),
        "E{} {:8} {loss/pos:.4f} loss, {correct/pos:-5.1f}% correct ({pos_correct:} of {pos_count:})".format(
            epoch, mode + "_pos", **metrics, **counts
        ),
    ]


@pytest.mark.parametrize(
    ("label", "probability"), [([0, 0, 0, 1], [0.1, 0.2, 0.7, 0.4]), ([0] * 300 + [1], [0.0] * 301)]
)
def test_lines_are_those_of_the_book(label, probability):
    metrics = per_class_metrics(label, probability, [12.3456] * len(label))
    assert [f"E1 {line}" for line in epoch_lines("trn", metrics, book=True)] == book_lines(1, "trn", metrics)


def test_undefined_values():
    metrics = per_class_metrics([0, 0], [0.1, 0.2], [0.1, 0.2])
    assert epoch_lines("val", metrics) == [
        "val      0.1500 loss, 100.0% correct, ",
        "val_neg  0.1500 loss, 100.0% correct (2 of 2)",
        "val_pos     n/a loss,   n/a% correct (0 of 0)",
        "val         n/a precision,    n/a recall,    n/a F1,    n/a ROC AUC,    n/a AP",
    ]
