"""How far a loop or an epoch is, and when it will be done: the book's ``enumerateWithEstimate``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar

import ignite.distributed as idist
from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_SILENCE_S = 30  # a line comes at least this often


class EstimateLines:
    """Logs when a loop will be done: after 4, 8, 16, 32 … iterations as the book does, and at least every 30 s.

    Args:
        description: what the loop does.
        total: number of iterations.
        warm_up: iterations at the start that are not timed, because workers are starting; no line comes before twice as
            many. The book takes the number of workers.
    """

    def __init__(self, description: str, total: int, warm_up: int = 0) -> None:
        self.description, self.total, self.warm_up = description, total, warm_up
        self._next = 4
        while self._next < 2 * warm_up:
            self._next *= 2
        self._done = 0
        self._start = self._said = time.time()
        self._log("----", "starting")

    def step(self) -> None:
        """Note one more iteration done, and log a line when it is time for one."""
        self._done += 1
        due = self._done == self._next
        if due:
            self._next *= 2
        if (due or time.time() - self._said >= _SILENCE_S) and self._done > self.warm_up:
            each = (time.time() - self._start) / (self._done - self.warm_up)
            seconds = each * (self.total - self.warm_up)
            self._log(f"{self._done:-4}", f"{_done_at(self._start + seconds)}, {timedelta(seconds=int(seconds))}")
        if self._done == self.warm_up:
            self._start = time.time()

    def close(self) -> None:
        """Log that the loop is done."""
        self._log("----", _done_at(time.time()))

    def _log(self, current: str, text: str) -> None:
        self._said = time.time()
        logger.info("%s %s/%d, %s", self.description, current, self.total, text)


def _done_at(timestamp: float) -> str:
    return f"done at {datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M:%S}"


def enumerate_with_estimate(
    iterable: Iterable[Item], description: str, total: int | None = None, *, warm_up: int = 0
) -> Iterator[tuple[int, Item]]:
    """Enumerate, logging how far the loop is and when it will be done.

    Args:
        iterable: what to loop over.
        description: what the loop does.
        total: number of items; not needed where ``iterable`` has a length.
        warm_up: iterations that are not timed, see :class:`EstimateLines`.

    Yields:
        Number, from 0, and item.
    """
    lines = EstimateLines(description, len(iterable) if total is None else total, warm_up)  # type: ignore[arg-type]
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
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._lines.step())
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self._lines.close())

    def _start(self, engine: Engine) -> None:
        description = self.description.format(epoch=engine.state.epoch)
        self._lines = EstimateLines(description, engine.state.epoch_length, self.warm_up)
