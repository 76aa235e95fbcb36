"""Training ends when the best epoch lies too many epochs back, also after a resume."""

import logging

import pytest
from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.training import BestEpoch, EarlyStopping

NAN = float("nan")


def run(values, patience, best_epoch=None, start=0):
    """Train for as many epochs as there are values of the key metric and return the last epoch."""
    best_epoch = best_epoch or BestEpoch()
    engine = Engine(lambda *_: None)
    completed = []
    engine.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: best_epoch.update(
            engine.state.epoch, {"roc_auc": values[engine.state.epoch - 1], "loss/all": 1.0 if values else NAN}
        ),
    )
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", start))
    EarlyStopping(best_epoch, patience).attach(engine)
    engine.add_event_handler(Events.COMPLETED, lambda: completed.append(True))
    engine.run([0], max_epochs=len(values))
    assert completed == [True]  # the handlers that end a run are called
    return engine.state.epoch


@pytest.mark.parametrize(
    ("values", "patience", "last"),
    [
        ([0.5, 0.6, 0.7, 0.8], 1, 4),
        ([0.5, 0.6, 0.6, 0.5, 0.9], 2, 4),
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 2, 5),
        ([0.5, 0.4, 0.4, 0.4], None, 4),
        ([0.5, NAN, NAN, 0.9], 2, 3),
    ],
)
def test_stops(values, patience, last):
    assert run(values, patience) == last


def test_a_run_without_a_best_epoch_stops(caplog):
    caplog.set_level(logging.INFO, logger="luna_monai")
    best_epoch = BestEpoch()
    best_epoch.update = lambda *_: False
    assert run([NAN] * 5, 3, best_epoch) == 3
    assert "E3: training stops early, the best epoch has not come" in caplog.text


def test_a_stopped_run_does_not_go_on_when_it_is_resumed():
    best_epoch = BestEpoch()
    assert run([0.5, 0.4, 0.4, 0.9], 2, best_epoch) == 3
    restored = BestEpoch()
    restored.load_state_dict(best_epoch.state_dict())
    assert run([0.5, 0.4, 0.4, 0.9], 2, restored, start=3) == 3
    assert run([0.5, 0.4, 0.4, 0.9], 3, restored, start=3) == 4


def test_patience_must_be_positive():
    with pytest.raises(LunaError, match="patience must be at least 1 epoch, found 0"):
        EarlyStopping(BestEpoch(), 0)
