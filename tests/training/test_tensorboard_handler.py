"""Tests of luna_monai.training.logs."""

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.pr_curve.metadata import PLUGIN_NAME
from tensorboard.util.tensor_util import make_ndarray

from luna_monai.training import CandidateMetrics, RunState, TensorBoardHandler
from luna_monai.training.logs import write_distributions


@pytest.fixture
def board(tmp_path):
    """Return a TensorBoard run that is closed at the end."""
    board = RunState(tmp_path, tb_prefix="prefix", comment="comment")
    board.names["time"] = "2020-07-01_01.02.03"
    yield board
    board.close()


def read_events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def write(board, label, probability, step=100):
    records = pd.DataFrame({"class": label, "probability": np.asarray(probability, dtype=np.float32)})
    write_distributions(board.writer("val"), records, step)
    board.close()
    return read_events(board.folder("val"))


def test_no_folder_before_something_is_written(board, tmp_path):
    assert board.folder("trn") == tmp_path / "runs" / "prefix" / "2020-07-01_01.02.03-trn_cls-comment"
    board.close()
    assert not (tmp_path / "runs").exists()
    board.writer("trn")
    assert [path.name for path in (tmp_path / "runs" / "prefix").iterdir()] == ["2020-07-01_01.02.03-trn_cls-comment"]


def test_precision_recall_curve(board):
    events = write(board, [0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    assert events.PluginTagToContent(PLUGIN_NAME).keys() == {"pr"}
    (event,) = events.Tensors("pr")
    assert event.step == 100
    true_positive, false_positive, *_, precision, recall = make_ndarray(event.tensor_proto)
    middle = len(recall) // 2  # thresholds are evenly spaced from 0 to 1
    assert (true_positive[0], false_positive[0]) == (2, 2)
    assert (precision[middle], recall[middle]) == pytest.approx((0.5, 0.5))


def test_histograms_omit_confident_predictions(board):
    events = write(board, [0, 0, 0, 1, 1, 1], [0.005, 0.011, 0.5, 0.995, 0.985, 0.5])
    negative, positive = (events.Histograms(name)[0].histogram_value for name in ("is_neg", "is_pos"))
    assert (negative.num, negative.sum) == (2, pytest.approx(0.511))
    assert (positive.num, positive.sum) == (2, pytest.approx(1.485))
    for histogram in (negative, positive):
        edges = np.array(histogram.bucket_limit) * 50
        np.testing.assert_allclose(edges, edges.round(), atol=1e-6)


@pytest.mark.parametrize(
    ("label", "probability", "histograms"),
    [
        ([0, 0], [0.2, 0.3], {"is_neg"}),
        ([1, 1], [0.2, 0.3], {"is_pos"}),
        ([0, 1], [0.0, 1.0], set()),
        ([0, 1], [np.nan, 0.5], {"is_pos"}),
    ],
)
def test_empty_curves_and_histograms_are_not_written(board, label, probability, histograms):
    events = write(board, label, probability)
    assert set(events.Tags()["histograms"]) == histograms
    assert events.Tags()["tensors"] == ["pr"]


def test_only_undefined_probabilities(board):
    events = write(board, [0, 1], [np.nan, np.nan])
    assert not events.Tags()["tensors"]
    assert not events.Tags()["histograms"]


@pytest.mark.parametrize("book", [False, True])
def test_scalars(board, book, make_network, make_trainer, candidates):
    make_trainer(
        candidates,
        make_network(),
        max_epochs=1,
        key_train_metric={"roc_auc": CandidateMetrics()},
        train_handlers=[TensorBoardHandler(board, "trn", book=book)],
    ).run()
    names = set(read_events(board.folder("trn")).Tags()["scalars"])
    six = {f"{what}/{group}" for what in ("loss", "correct") for group in ("all", "neg", "pos")}
    if book:
        assert names == six
    else:
        assert six | {"pr/recall", "pr/f1_score", "roc_auc", "average_precision"} <= names
        assert not [name for name in names if "count" in name]
