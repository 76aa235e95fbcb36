"""How far a loop or an epoch is, when it will be done (the book's ``enumerateWithEstimate``), and how fast it was."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import datetime, timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from luna_monai.training.run_state import RunState

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_LONG_WAIT = 0.05  # share of an epoch: above it the log says what to change
_SILENCE_S = 30  # a line comes at least this often


class EstimateLines:
    """Logs when a loop will be done: after 4, 8, 16, 32 … iterations as the book does, and at least every 30 s.

    Args:
        description: what the loop does.
        total: number of iterations; no estimate is made when None.
        warm_up: iterations at the start that are not timed, because workers are starting; no line comes before twice as
            many. The book takes the number of workers.
        first: iteration of the first line.
        backoff: factor from one line's iteration to that of the next.
    """

    def __init__(
        self, description: str, total: int | None, *, warm_up: int = 0, first: int = 4, backoff: int = 2
    ) -> None:
        if backoff < 2:
            raise ValueError(f"backoff must be at least 2, found {backoff}")
        self.description = description
        self.total = total
        self.warm_up = warm_up
        self.backoff = backoff
        self._next = max(first, 1)
        while self._next < warm_up * backoff:
            self._next *= backoff
        self._current = 0
        self._start = self._said = time.time()
        self._log("----", "starting")

    def step(self) -> None:
        """Note one more iteration done, and log a line when it is time for one."""
        self._current += 1
        due = self._current == self._next and self.total is not None
        if due:
            self._next *= self.backoff
        if (due or time.time() - self._said >= _SILENCE_S) and self._current > self.warm_up:
            self._log_estimate()
        if self._current == self.warm_up:
            self._start = time.time()

    def _log_estimate(self) -> None:
        if self.total is None:
            self._log(f"{self._current:-4}", f"{timedelta(seconds=int(time.time() - self._start))} so far")
            return
        elapsed = time.time() - self._start
        seconds = elapsed / (self._current - self.warm_up) * (self.total - self.warm_up)
        self._log(
            f"{self._current:-4}", f"done at {_to_text(self._start + seconds)}, {timedelta(seconds=int(seconds))}"
        )

    def close(self) -> None:
        """Log that the loop is done."""
        self._log("----", f"done at {_to_text(time.time())}")

    def _log(self, current: str, text: str) -> None:
        self._said = time.time()
        logger.info("%s %s/%s, %s", self.description, current, "?" if self.total is None else self.total, text)


def enumerate_with_estimate(
    iterable: Iterable[Item], description: str, total: int | None = None, *, warm_up: int = 0
) -> Iterator[tuple[int, Item]]:
    """Enumerate, logging how far the loop is and when it will be done.

    Args:
        iterable: what to loop over.
        description: what the loop does.
        total: number of items; ``len(iterable)``, where it has one, when None.
        warm_up: iterations that are not timed, see :class:`EstimateLines`.

    Yields:
        Number, from 0, and item.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    lines = EstimateLines(description, total, warm_up=warm_up)
    for number, item in enumerate(iterable):
        yield number, item
        lines.step()
    lines.close()


class ProgressHandler:
    """Logs how far an epoch is, as ``E1 Training   16/1938, done at 2018-02-28 20:52:54, 0:02:57``.

    Args:
        description: what the engine does, with ``{epoch}`` in it. The book has ``"E{epoch} Training"`` and
            ``"E{epoch} Validation "``.
        warm_up: iterations that are not timed, see :class:`EstimateLines`; the book takes the number of workers.
    """

    def __init__(self, description: str = "E{epoch} Training", warm_up: int = 0) -> None:
        self.description = description
        self.warm_up = warm_up
        self._lines: EstimateLines

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._lines.step())
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._lines.close())

    def _start(self, engine: Engine) -> None:
        description = self.description.format(epoch=engine.state.epoch)
        self._lines = EstimateLines(description, engine.state.epoch_length, warm_up=self.warm_up)


class ThroughputHandler:
    """Logs samples per second, the share of the time spent waiting for data, and a GPU's memory, each epoch.

    ignite's ``BasicTimeProfiler`` counts all waiting for data; on a GPU, which computes in the background, only that
    counts here after which the GPU has nothing left to do. An epoch's time is from its start to this handler, so list
    it before the validation.

    Args:
        run_state: TensorBoard's folders and the samples seen; nothing is written there when None.

    Attributes:
        epochs: a dict for each epoch: ``samples_per_second`` of all processes together; ``data_wait``, a percentage,
            the mean of all processes; and on GPUs ``device_memory_mb``, the highest of the epoch.
    """

    def __init__(self, run_state: RunState | None = None) -> None:
        self.run_state = run_state
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
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

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

    def _log(self, engine: Engine) -> None:
        if self._gpu:
            torch.cuda.synchronize(self._gpu)
        seconds = time.perf_counter() - self._started
        wait = idist.all_reduce(self._waited / seconds) / idist.get_world_size()
        found = {"samples_per_second": idist.all_reduce(self._samples) / seconds, "data_wait": 100 * wait}
        if self._gpu:
            found["device_memory_mb"] = torch.cuda.max_memory_allocated(self._gpu) / 1e6
        self.epochs.append(found)
        if idist.get_rank() != 0:
            return
        memory = f", {found['device_memory_mb']:,.0f} MB on the GPU" if self._gpu else ""
        logger.info(
            "E%d trn      %.1f samples/s, %.1f%% of the time waiting for data%s",
            engine.state.epoch, found["samples_per_second"], found["data_wait"], memory,
        )  # fmt: skip
        if wait > _LONG_WAIT:
            more = "a larger num_workers" if self._gpu else "cache_dir (on a fast disk) and num_workers=2"
            logger.info("The loader is the limit: set %s", more)
        if self.run_state is not None:
            for name, value in found.items():
                self.run_state.writer("trn").add_scalar(f"throughput/{name}", value, self.run_state.samples)


def _to_text(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M:%S}"
