"""Tests of luna_monai.training.console."""

import logging
import re

import pandas as pd
import pytest
from ignite.engine import Engine

from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.training import RunState, RunSummary
from luna_monai.training.console import epoch_lines


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
    assert epoch_lines(1, "trn", metrics, book=True) == book_lines(1, "trn", metrics)


def test_undefined_values():
    metrics = per_class_metrics([0, 0], [0.1, 0.2], [0.1, 0.2])
    assert epoch_lines(12, "val", metrics) == [
        "E12 val      0.1500 loss, 100.0% correct, ",
        "E12 val_neg  0.1500 loss, 100.0% correct (2 of 2)",
        "E12 val_pos     n/a loss,   n/a% correct (0 of 0)",
        "E12 val         n/a precision,    n/a recall,    n/a F1,    n/a ROC AUC,    n/a AP",
    ]


def records_of(candidates, probability):
    return pd.DataFrame(
        {"row": candidates.index, "class": candidates["class"], "probability": probability, "loss": 0.7}
    )


def log_worst(candidates, records, caplog, folder):
    caplog.set_level(logging.INFO, logger="luna_monai")
    state = RunState(folder)
    state.update(3, {"roc_auc": 0.5, "loss/all": 0.7}, records)
    engine = Engine(lambda *_: None)
    RunSummary(candidates, state).attach(engine)
    engine.run([0])
    return [record.getMessage() for record in caplog.records if record.name.startswith("luna_monai")]


def test_worst_candidates(candidates, caplog, tmp_path):
    probability = [row / 100 for row in range(48)]
    probability[7] = 0.9  # a nodule that is found
    probability[20:35] = [0.6 + row / 100 for row in range(15)]
    lines = log_worst(candidates, records_of(candidates, probability), caplog, tmp_path)
    assert lines[0] == "Validation of E3, false negatives: 7 of 8, the worst 7:"
    assert lines[1].split() == ["series", "x", "mm", "y", "mm", "z", "mm", "diameter", "mm", "probability", "loss"]
    assert [float(line.split()[5]) for line in lines[2:9]] == pytest.approx([row / 100 for row in range(7)])
    assert lines[9] == "Validation of E3, false positives: 15 of 40, the worst 10:"
    worst = candidates.loc[34]
    assert lines[11].split() == [
        worst["seriesuid"],
        *(f"{worst[axis]:.1f}" for axis in ("coordX", "coordY", "coordZ")),
        "0.0",
        "0.7400",
        "0.7000",
    ]
    assert lines[21].startswith("Best epoch: 3 of 1, ")


def test_nothing_wrong(candidates, caplog, tmp_path):
    lines = log_worst(candidates, records_of(candidates, candidates["class"] * 0.98 + 0.01), caplog, tmp_path)
    assert lines[:2] == [
        "Validation of E3, false negatives: 0 of 8, none to show",
        "Validation of E3, false positives: 0 of 40, none to show",
    ]


def test_table_is_aligned(candidates, caplog, tmp_path):
    lines = log_worst(candidates, records_of(candidates, 0.2), caplog, tmp_path)
    table = lines[1:10]
    ends = {tuple(match.end() for match in re.finditer(r"\S+", line))[-1] for line in table}
    assert len(ends) == 1


def test_without_validation_and_files(candidates, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="luna_monai")
    (tmp_path / "model.pt").touch()
    engine = Engine(lambda *_: None)
    RunSummary(candidates, RunState(tmp_path)).attach(engine)
    engine.run([0])
    assert [record.getMessage() for record in caplog.records if record.name.startswith("luna_monai")] == [
        "No best epoch: the validation metrics are undefined",
        f"Weights:     {tmp_path / 'model.pt'}",
    ]
