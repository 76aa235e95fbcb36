"""Tests of luna_monai.training.progress."""

import logging
import re
import time as real_time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from luna_monai.training import ProgressHandler, RunState, ThroughputHandler, enumerate_with_estimate, progress


class Clock:
    """A clock that only moves when told to."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now

    perf_counter = time


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


def test_unknown_length(lines):
    list(enumerate_with_estimate(iter(range(10)), "reading"))
    assert [re.sub(r"\d{4}-.*", "NOW", line) for line in lines()] == [
        "reading ----/?, starting",
        "reading ----/?, done at NOW",
    ]


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


class SlowLoader(DataLoader):
    """A loader that takes its time."""

    def __iter__(self):
        for batch in super().__iter__():
            real_time.sleep(0.03)
            yield batch


@pytest.fixture
def measure(make_trainer, candidates, make_network):
    """Return a function that trains two epochs of 6 batches, each loaded in 0.03 s, under a handler."""

    def run(handler):
        trainer = make_trainer(candidates, make_network(), train_handlers=[handler])
        trainer.data_loader = SlowLoader(trainer.data_loader.dataset, batch_size=8)
        trainer.run()

    return run


def test_throughput(measure, lines, tmp_path):
    state = RunState(tmp_path)
    handler = ThroughputHandler(state)
    measure(handler)
    for epoch in handler.epochs:  # a busy machine only makes it slower
        seconds = 48 / epoch["samples_per_second"]
        assert 6 * 0.03 <= epoch["data_wait"] / 100 * seconds <= seconds
    assert re.fullmatch(r"E1 trn      [\d.]+ samples/s, [\d.]+% of the time waiting for data", lines()[0])
    assert lines()[1].startswith("The loader is the limit: set cache_dir")
    state.close()
    scalars = EventAccumulator(str(state.folder("trn"))).Reload()
    for name in ("samples_per_second", "data_wait"):
        values = [event.value for event in scalars.Scalars(f"throughput/{name}")]
        assert values == pytest.approx([epoch[name] for epoch in handler.epochs])


@pytest.mark.parametrize("busy", [True, False])
def test_only_waiting_that_leaves_a_gpu_idle_counts(measure, monkeypatch, lines, busy):
    class OnGpu(ThroughputHandler):
        def _start(self, engine):
            super()._start(engine)
            self._gpu = torch.device("cuda")

    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5e9)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(query=lambda: not busy))
    handler = OnGpu()
    measure(handler)
    for epoch in handler.epochs:
        assert epoch["device_memory_mb"] == 5000
        assert (epoch["data_wait"] == 0) is busy
    assert any("The loader is the limit" in line for line in lines()) is not busy
