"""Samples per second, time spent waiting for data, and GPU memory of each epoch of an engine."""

from __future__ import annotations

import time
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys


class ThroughputHandler:
    """Measures the throughput of each epoch.

    ignite's ``BasicTimeProfiler`` counts all time spent waiting for data. On a GPU, which computes in the background,
    this handler counts only waits after which the GPU is idle.

    Attributes:
        epochs: a dict for each epoch: ``samples_per_second``, the total over all processes; ``data_wait``, a
            percentage, the mean over all processes; and on GPUs ``device_memory_mb``, the peak of the epoch.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self._gpu: Any = None
        self._started = self._asked = self._waited = 0.0
        self._samples = 0

    def attach(self, engine: Engine) -> None:
        """Register with an engine."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _start(self, engine: Engine) -> None:
        device = torch.device(getattr(engine.state, "device", None) or "cpu")
        self._gpu = device if device.type == "cuda" else None
        self._samples, self._waited = 0, 0.0
        if self._gpu:
            torch.cuda.reset_peak_memory_stats(self._gpu)
        self._started = time.perf_counter()

    def _ask(self) -> None:
        self._asked = time.perf_counter()

    def _get(self) -> None:
        if not self._gpu or torch.cuda.current_stream(self._gpu).query():
            self._waited += time.perf_counter() - self._asked

    def _count(self, engine: Engine) -> None:
        self._samples += len(engine.state.output[CommonKeys.LABEL])

    def _complete(self, engine: Engine) -> None:
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        seconds = time.perf_counter() - self._started
        wait = idist.all_reduce(self._waited / seconds) / idist.get_world_size()
        found = {"samples_per_second": idist.all_reduce(self._samples) / seconds, "data_wait": 100 * wait}
        if self._gpu:
            found["device_memory_mb"] = torch.cuda.max_memory_allocated(self._gpu) / 1e6
        self.epochs.append(found)
