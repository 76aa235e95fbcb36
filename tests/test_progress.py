"""Tests of luna_monai.progress and the handler that uses it."""

import logging

import pytest
from ignite.engine import Engine

from luna_monai import progress
from luna_monai.progress import enumerate_with_estimate
from luna_monai.training import ProgressHandler


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Stop the clock at noon, local time."""
    clock = Clock(progress.datetime(2018, 2, 28, 12, 0, 0).timestamp())
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(caplog):
    """Return a function that gives all lines logged so far."""
    caplog.set_level(logging.INFO, logger="luna_monai")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("luna_monai")]


def test_lines_of_the_book(clock, lines):
    for _ in enumerate_with_estimate(range(100), "E1 Training"):
        clock.now += 0.25
    assert lines() == [
        "E1 Training ----/100, starting",
        "E1 Training    4/100, done at 2018-02-28 12:00:25, 0:00:25",
        "E1 Training    8/100, done at 2018-02-28 12:00:25, 0:00:25",
        "E1 Training   16/100, done at 2018-02-28 12:00:25, 0:00:25",
        "E1 Training   32/100, done at 2018-02-28 12:00:25, 0:00:25",
        "E1 Training   64/100, done at 2018-02-28 12:00:25, 0:00:25",
        "E1 Training ----/100, done at 2018-02-28 12:00:25",
    ]


def test_warm_up_is_not_timed(clock, lines):
    for number, _ in enumerate_with_estimate(range(40), "reading", warm_up=8):
        clock.now += 2 if number < 8 else 1
    assert lines()[1:3] == [
        "reading   16/40, done at 2018-02-28 12:00:48, 0:00:32",
        "reading   32/40, done at 2018-02-28 12:00:48, 0:00:32",
    ]


def test_enumerates(lines):
    assert list(enumerate_with_estimate("abc", "letters")) == [(0, "a"), (1, "b"), (2, "c")]


def test_an_error_is_not_done(lines):
    def divide():
        for number, _ in enumerate_with_estimate(range(3), "dividing"):
            1 / (1 - number)

    with pytest.raises(ZeroDivisionError):
        divide()
    assert lines() == ["dividing ----/3, starting"]


def test_a_line_comes_at_least_every_30_seconds(clock, lines):
    for _ in enumerate_with_estimate(range(9), "reading"):
        clock.now += 20
    assert [line.split(",")[0] for line in lines()] == [
        "reading ----/9",
        "reading    2/9",
        "reading    4/9",
        "reading    6/9",
        "reading    8/9",
        "reading ----/9",
    ]


def test_engine(clock, lines):
    def step(engine, batch):
        clock.now += 1

    engine = Engine(step)
    ProgressHandler("E{epoch} Validation ").attach(engine)
    engine.run(range(5), max_epochs=2)
    assert lines() == [
        "E1 Validation  ----/5, starting",
        "E1 Validation     4/5, done at 2018-02-28 12:00:05, 0:00:05",
        "E1 Validation  ----/5, done at 2018-02-28 12:00:05",
        "E2 Validation  ----/5, starting",
        "E2 Validation     4/5, done at 2018-02-28 12:00:10, 0:00:05",
        "E2 Validation  ----/5, done at 2018-02-28 12:00:10",
    ]


def test_engine_with_an_error(lines):
    def step(engine, batch):
        raise RuntimeError("broken")

    engine = Engine(step)
    ProgressHandler().attach(engine)
    with pytest.raises(RuntimeError, match="broken"):
        engine.run(range(5))
    assert lines() == ["E1 Training ----/5, starting"]
