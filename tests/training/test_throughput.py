"""Tests of luna_monai.training.throughput."""

import re
import time
from types import SimpleNamespace

import pytest
import torch
from monai.engines import SupervisedTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from luna_monai.training import TensorBoardRun, ThroughputHandler, TrainingSamples
from luna_monai.training.throughput import advice


class SlowLoader(DataLoader):
    """A loader that takes its time."""

    seconds = 0.0

    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(self.seconds)
            yield batch


@pytest.fixture
def run(make_trainer, candidates, make_network):
    def run(handler: ThroughputHandler, loading: float = 0.0, computing: float = 0.0) -> SupervisedTrainer:
        trainer = make_trainer(candidates, make_network(), train_handlers=[handler])
        loader = SlowLoader(trainer.data_loader.dataset, batch_size=8)
        loader.seconds = loading
        trainer.data_loader = loader
        prepare = trainer.prepare_batch
        trainer.prepare_batch = lambda *args, **kwargs: time.sleep(computing) or prepare(*args, **kwargs)
        trainer.run()
        return trainer

    return run


def test_time_waiting_for_data_is_told(run, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    handler = ThroughputHandler()
    run(handler, loading=0.03)
    first, second = handler.epochs
    for epoch in (first, second):  # 48 samples in 6 batches of 0.03 s; a busy machine only makes it slower
        seconds = 48 / epoch["samples_per_second"]
        assert 6 * 0.03 <= epoch["data_wait"] / 100 * seconds <= seconds
    assert 50e6 < first["memory_mb"] * 1e6 < 50e9
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("throughput")]
    pattern = r"E1 trn      [\d.]+ samples/s, [\d.]+% of the time waiting for data, [\d,]+ MB of memory"
    assert re.fullmatch(pattern, lines[0])
    assert lines[1].startswith("The loader is the limit: ")


def test_no_advice_where_the_network_is_the_limit(run, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    handler = ThroughputHandler(limit=0.9)
    run(handler, computing=0.03)
    for epoch in handler.epochs:
        seconds = 48 / epoch["samples_per_second"]
        assert (1 - epoch["data_wait"] / 100) * seconds >= 6 * 0.03
    assert "The loader is the limit" not in caplog.text


@pytest.mark.parametrize("busy", [True, False])
def test_only_waiting_that_leaves_a_gpu_idle_counts(run, monkeypatch, caplog, busy):
    caplog.set_level("INFO", logger="luna_monai")
    monkeypatch.setattr(ThroughputHandler, "_on_gpu", lambda *_: True)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5e9)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(query=lambda: not busy))
    handler = ThroughputHandler()
    run(handler, loading=0.03)
    for epoch in handler.epochs:
        assert epoch["device_memory_mb"] == 5000
        if busy:
            assert epoch["data_wait"] == 0
        else:
            assert epoch["data_wait"] / 100 * 48 / epoch["samples_per_second"] >= 6 * 0.03
    assert ("The loader is the limit" in caplog.text) is not busy


def test_tensorboard(run, tmp_path):
    board, samples = TensorBoardRun(tmp_path), TrainingSamples()
    handler = ThroughputHandler("trn", board, samples)
    samples.count = 1000  # a run that was resumed
    run(handler)
    board.close()
    scalars = EventAccumulator(str(board.folder("trn"))).Reload()
    for name in ("samples_per_second", "data_wait", "memory_mb"):
        events = scalars.Scalars(f"throughput/{name}")
        assert [event.value for event in events] == pytest.approx([epoch[name] for epoch in handler.epochs])
        assert [event.step for event in events] == [1048, 1096]
    with pytest.raises(ValueError, match="run needs training_samples"):
        ThroughputHandler(run=board)


@pytest.mark.parametrize(
    ("workers", "cache_dir", "on_gpu", "words"),
    [
        (0, None, False, "set cache_dir"),
        (0, "cache", False, "set num_workers to 2, .* bench data"),
        (2, "cache", False, "^the cache may be on a slow disk"),
        (0, "cache", True, "cache_on_device to true .* num_workers to 4 or more"),
        (4, "cache", True, "num_workers to more than 4"),
    ],
)
def test_advice(workers, cache_dir, on_gpu, words):
    dataset = SimpleNamespace(cache=SimpleNamespace(cache_dir=cache_dir))
    assert re.search(words, advice(SimpleNamespace(num_workers=workers, dataset=dataset), on_gpu))
