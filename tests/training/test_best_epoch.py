"""Tests of luna_monai.training.best_epoch and is_better."""

import math

import pytest

from luna_monai.errors import LunaError
from luna_monai.training import BestEpoch, is_better

NAN = math.nan


@pytest.mark.parametrize(
    ("current", "best", "smaller", "expected"),
    [
        (0.6, 0.5, False, True),
        (0.5, 0.6, False, False),
        (0.5, 0.5, False, False),
        (0.5, 0.6, True, True),
        (0.6, 0.5, True, False),
        (0.1, NAN, False, True),
        (9.0, NAN, True, True),
        (NAN, 0.1, False, False),
        (NAN, 0.1, True, False),
        (NAN, NAN, False, False),
    ],
)
def test_is_better(current, best, smaller, expected):
    assert is_better(current, best, smaller) is expected


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
def test_rule(auc_and_loss, best):
    best_epoch = BestEpoch()
    for epoch, (auc, loss) in enumerate(auc_and_loss, start=1):
        best_epoch.update(epoch, {"roc_auc": auc, "loss/all": loss})
    assert best_epoch.epoch == best


def test_smaller_key_metric():
    best_epoch = BestEpoch("loss/pos", smaller=True)
    for epoch, loss in enumerate((0.5, 0.3, 0.4), start=1):
        best_epoch.update(epoch, {"loss/pos": loss, "loss/all": 1.0})
    assert best_epoch.epoch == 2


def test_state_survives():
    best_epoch, resumed = BestEpoch(), BestEpoch()
    best_epoch.update(3, {"roc_auc": 0.8, "loss/all": 0.2})
    resumed.load_state_dict(best_epoch.state_dict())
    assert resumed.epoch == 3
    assert not resumed.update(4, {"roc_auc": 0.7, "loss/all": 0.1})
    assert resumed.update(5, {"roc_auc": 0.9, "loss/all": 0.1})


def test_unknown_metric():
    with pytest.raises(LunaError, match=r"no metric 'roc'; there are roc_auc, loss/all"):
        BestEpoch("roc").update(1, {"roc_auc": 0.5, "loss/all": 0.1})
