"""Tests of luna_monai.training.logs."""

import logging

import pandas as pd
import pytest
from ignite.engine import Engine

from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.training import RunState, RunSummary
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
def test_lines_are_the_books(label, probability):
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


def records_of(candidates, probability):
    return pd.DataFrame(
        {"row": candidates.index, "class": candidates["class"], "probability": probability, "loss": 0.7}
    )


def test_summary(candidates, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="luna_monai")
    state = RunState(tmp_path)
    probability = [0.9] * 2 + [0.1] * 6 + [0.6] * 3 + [0.2] * 37
    state.update(3, {"roc_auc": 0.75, "loss/all": 0.7}, records_of(candidates, probability))
    engine = Engine(lambda *_: None)
    RunSummary(state).attach(engine)
    engine.run([0], max_epochs=4)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("luna_monai")] == [
        "Best epoch: 3 of 4, 81.2% of the validation candidates correct, ROC AUC 0.7500",
    ]


def test_without_validation_and_files(caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="luna_monai")
    (tmp_path / "model.pt").touch()
    engine = Engine(lambda *_: None)
    RunSummary(RunState(tmp_path)).attach(engine)
    engine.run([0])
    assert [record.getMessage() for record in caplog.records if record.name.startswith("luna_monai")] == [
        "No best epoch: the validation metrics are undefined",
        f"Weights:     {tmp_path / 'model.pt'}",
    ]
