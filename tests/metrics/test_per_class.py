"""Tests of luna_monai.metrics.per_class and records."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from luna_monai.metrics.per_class import METRIC_NAMES, per_class_metrics
from luna_monai.training.metrics import gather_records


def test_values_by_hand():
    metrics = per_class_metrics(
        label=[0, 0, 0, 1, 1], probability=[0.1, 0.5, 0.8, 0.5, 0.9], loss=[0.1, 0.7, 1.6, 0.7, 0.1]
    )
    expected = {
        "loss/all": 0.64,
        "loss/neg": 0.8,
        "loss/pos": 0.4,
        "correct/all": 60.0,
        "correct/neg": 200 / 3,  # exactly 0.5 is negative: right for a negative, wrong for a nodule
        "correct/pos": 50.0,
        "pr/precision": 0.5,
        "pr/recall": 0.5,
        "pr/f1_score": 0.5,
        "roc_auc": 4.5 / 6,  # of six pairs four are in order, one is a tie
        "average_precision": 0.5 + 0.5 * 2 / 4,
        "count/neg": 3,
        "count/pos": 2,
        "correct_count/neg": 2,
        "correct_count/pos": 1,
    }
    assert metrics == pytest.approx(expected)
    assert tuple(metrics) == METRIC_NAMES


def test_threshold_moves_decisions():
    label, probability = [0, 1], [0.2, 0.3]
    assert per_class_metrics(label, probability, [0, 0], threshold=0.25)["correct/all"] == 100
    assert per_class_metrics(label, probability, [0, 0], threshold=0.3)["correct/pos"] == 0


def test_takes_tensors():
    rng = np.random.default_rng(1)
    label, probability = rng.integers(0, 2, 200), rng.random(200)
    metrics = per_class_metrics(*(torch.from_numpy(values) for values in (label, probability, probability)))
    assert metrics["pr/f1_score"] == pytest.approx(f1_score(label, probability > 0.5))


@pytest.mark.parametrize(
    ("label", "undefined"),
    [
        ([0, 0], {"loss/pos", "correct/pos", "pr/recall", "pr/f1_score", "roc_auc", "average_precision"}),
        ([1, 1], {"loss/neg", "correct/neg", "roc_auc", "average_precision"}),
    ],
)
def test_one_class(label, undefined):
    metrics = per_class_metrics(label, [0.2, 0.6], [0.3, 0.4])
    assert {name for name, value in metrics.items() if math.isnan(value)} == undefined


def test_no_samples():
    metrics = per_class_metrics([], [], [])
    assert {name for name, value in metrics.items() if not math.isnan(value)} == {
        "count/neg",
        "count/pos",
        "correct_count/neg",
        "correct_count/pos",
    }


def test_nothing_called_positive():
    metrics = per_class_metrics([0, 1], [0.1, 0.2], [0.1, 1.6])
    assert math.isnan(metrics["pr/precision"])
    assert metrics["pr/recall"] == 0
    assert metrics["pr/f1_score"] == 0


def test_diverged_model():
    metrics = per_class_metrics([0, 1, 1], [np.nan, np.nan, 0.9], [np.nan, np.nan, 0.1])
    assert math.isnan(metrics["roc_auc"])
    assert math.isnan(metrics["loss/all"])
    assert metrics["correct_count/pos"] == 1


def record(row, label, probability, loss):
    return tuple(torch.tensor(values) for values in (row, label, probability, loss))


def test_records_in_order_of_arrival():
    frame = gather_records([record([7, 3], [1, 0], [0.9, 0.1], [1.0, 0.5]), record([3], [0], [0.3], [0.4])])
    assert frame["row"].tolist() == [7, 3, 3]
    assert frame["class"].tolist() == [1, 0, 0]
    assert frame["probability"].tolist() == pytest.approx([0.9, 0.1, 0.3])
    assert frame["loss"].tolist() == pytest.approx([1.0, 0.5, 0.4])
    assert gather_records([]).empty


def test_records_keep_large_rows():
    row = 2**24 + 1  # float32 cannot hold it
    assert gather_records([record([row], [0], [0.5], [0.7])])["row"].tolist() == [row]
