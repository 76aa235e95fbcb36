"""The best epoch, early stopping, and the state that a checkpoint keeps."""

import logging
import math

import pytest
from ignite.engine import Engine, Events

from luna_monai.training import EarlyStopping, RunState

NAN = math.nan


@pytest.mark.parametrize(
    ("auc_and_loss", "best"),
    [
        ([(0.5, 0.1), (0.7, 0.9), (0.6, 0.1)], 2),
        ([(0.7, 0.9), (0.7, 0.1)], 1),
        ([(NAN, 0.5), (NAN, 0.3), (NAN, 0.4)], 2),
        ([(NAN, 0.1), (0.2, 0.9), (NAN, 0.1)], 2),
        ([(NAN, NAN), (NAN, 0.9)], 2),
        ([(NAN, NAN), (NAN, NAN)], None),
        ([(0.6, NAN), (NAN, 0.1)], 1),
    ],
)
def test_best_epoch(tmp_path, auc_and_loss, best):
    state = RunState(tmp_path)
    for epoch, (auc, loss) in enumerate(auc_and_loss, start=1):
        state.update(epoch, {"roc_auc": auc, "loss/all": loss})
    assert state.best_epoch == best


def test_the_smaller_loss_wins(tmp_path):
    state = RunState(tmp_path, "loss/pos")
    for epoch, loss in enumerate((0.5, 0.3, 0.4), start=1):
        state.update(epoch, {"loss/pos": loss, "loss/all": 1.0})
    assert state.best_epoch == 2


def test_state_survives(tmp_path):
    state, resumed = RunState(tmp_path, comment="mine"), RunState(tmp_path)
    state.samples = 7
    state.update(3, {"roc_auc": 0.8, "loss/all": 0.2})
    resumed.load_state_dict(state.state_dict())
    assert (resumed.samples, resumed.best_epoch) == (7, 3)
    assert resumed.folder("trn") == state.folder("trn")
    assert not resumed.update(4, {"roc_auc": 0.7, "loss/all": 0.1})
    assert resumed.update(5, {"roc_auc": 0.9, "loss/all": 0.1})


def train(values, patience, state, start=0, interval=1):
    """Train for one epoch per value of the key metric, validating every ``interval``, and return the last epoch."""
    engine = Engine(lambda *_: None)
    completed = []

    @engine.on(Events.EPOCH_COMPLETED(every=interval))
    def validate():
        state.update(engine.state.epoch, {"roc_auc": values[engine.state.epoch - 1], "loss/all": 1.0})

    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", start))
    EarlyStopping(state, patience).attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: completed.append(True))
    engine.run([0], max_epochs=len(values))
    assert completed == [True]  # the handlers that end a run are called
    return engine.state.epoch


@pytest.mark.parametrize(
    ("values", "patience", "interval", "last"),
    [
        ([0.5, 0.6, 0.7, 0.8], 1, 1, 4),
        ([0.5, 0.6, 0.6, 0.5, 0.9], 2, 1, 4),
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 2, 1, 5),
        ([0.5, 0.4, 0.4, 0.4], None, 1, 4),
        ([0.5, NAN, NAN, 0.9], 2, 1, 3),
        ([0.5] * 12, 2, 3, 9),  # patience counts validations: epoch 3 is the best, 6 and 9 are not
    ],
)
def test_early_stopping(tmp_path, values, patience, interval, last):
    assert train(values, patience, RunState(tmp_path), interval=interval) == last


def test_a_run_without_a_best_epoch_stops(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="luna_monai")
    state = RunState(tmp_path)
    state.update(0, {"roc_auc": 0.9, "loss/all": 0.1})
    assert train([NAN] * 5, 3, state) == 3
    assert "E3: training stops early, 3 validations without a new best epoch" in caplog.text


def test_a_stopped_run_does_not_train_when_it_is_resumed(tmp_path):
    state, restored = RunState(tmp_path), RunState(tmp_path)
    assert train([0.5, 0.4, 0.4, 0.9], 2, state) == 3
    restored.load_state_dict(state.state_dict())
    assert train([0.5, 0.4, 0.4, 0.9], 2, restored, start=3) == 3
    assert train([0.5, 0.4, 0.4, 0.9], 3, restored, start=3) == 4
