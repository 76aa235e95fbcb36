"""How far a loop or an epoch is, and when it will be done: the book's ``enumerateWithEstimate``."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_SILENCE_S = 30  # a line comes at least this often


def enumerate_with_estimate(
    iterable: Iterable[Item], description: str, total: int | None = None, *, warm_up: int = 0
) -> Iterator[tuple[int, Item]]:
    """Enumerate, logging how far the loop is and when it will be done.

    A line comes after 4, 8, 16, 32 … iterations as in the book, and at least every 30 s.

    Args:
        iterable: what to loop over.
        description: what the loop does.
        total: number of items; not needed where ``iterable`` has a length.
        warm_up: iterations at the start that are not timed, because workers are starting; no line comes before twice as
            many. The book takes the number of workers.

    Yields:
        Number, from 0, and item.
    """
    total = len(iterable) if total is None else total  # type: ignore[arg-type]
    due = 4
    while due < 2 * warm_up:
        due *= 2
    logger.info("%s ----/%d, starting", description, total)
    start = said = time.time()
    for number, item in enumerate(iterable, 1):
        yield number - 1, item
        now = time.time()
        if (number == due or now - said >= _SILENCE_S) and number > warm_up:
            seconds = (now - start) / (number - warm_up) * (total - warm_up)
            left = timedelta(seconds=int(seconds))
            logger.info("%s %4d/%d, %s, %s", description, number, total, _done_at(start + seconds), left)
            said = now
        due *= 2 if number == due else 1
        start = now if number == warm_up else start
    logger.info("%s ----/%d, %s", description, total, _done_at(time.time()))


def _done_at(timestamp: float) -> str:
    return f"done at {datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M:%S}"


@dataclass(eq=False)
class ProgressHandler:
    """Logs how far an epoch is, as ``E1 Training   16/1938, done at 2018-02-28 20:52:54, 0:02:57``.

    Args:
        description: what the engine does, with ``{epoch}`` in it. The book has ``"E{epoch} Training"`` and
            ``"E{epoch} Validation "``.
        warm_up: iterations that are not timed, see :func:`enumerate_with_estimate`.
    """

    description: str = "E{epoch} Training"
    warm_up: int = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: next(self._steps, None))

    def _start(self, engine: Engine) -> None:
        description, steps = self.description.format(epoch=engine.state.epoch), range(engine.state.epoch_length)
        self._steps: Iterator[Any] = enumerate_with_estimate(steps, description, warm_up=self.warm_up)
        next(self._steps)
