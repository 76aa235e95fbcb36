"""When will it be done? The book's ``enumerateWithEstimate``, for loops and for engines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from luna_monai.training.exceptions import call_on_exception

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows how far a loop is."""

    def step(self) -> None:
        """Note one more iteration done."""

    def close(self, done: bool = True) -> None:
        """Note that the loop has ended, having done everything or not."""


class EstimateLines:
    """Logs when a loop will be done, after 4, 8, 16, 32 … iterations.

    Args:
        description: what the loop does.
        total: number of iterations; no estimate can be made when None.
        warm_up: iterations at the start that say little about the others, because workers are starting; they are not
            timed, and no line comes before twice as many. The book takes the number of workers.
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
        self._start = time.time()
        self._log("----", "starting")

    def step(self) -> None:
        """Note one more iteration done, and log an estimate when it is time for one."""
        self._current += 1
        if self._current == self._next:
            self._next *= self.backoff
            if self.total is not None:
                self._log_estimate(self.total)
        if self._current == self.warm_up:
            self._start = time.time()

    def _log_estimate(self, total: int) -> None:
        elapsed = time.time() - self._start
        seconds = elapsed / (self._current - self.warm_up) * (total - self.warm_up)
        done_at = _to_text(self._start + seconds)
        self._log(f"{self._current:-4}", f"done at {done_at}, {timedelta(seconds=int(seconds))}")

    def close(self, done: bool = True) -> None:
        """Log that the loop has ended, if it has done everything."""
        if done:
            self._log("----", f"done at {_to_text(time.time())}")

    def _log(self, current: str, text: str) -> None:
        logger.info("%s %s/%s, %s", self.description, current, "?" if self.total is None else self.total, text)


class ProgressBar:
    """A tqdm bar on standard error, which goes away at the end.

    Args:
        description: what the loop does.
        total: number of iterations, if it is known.
    """

    def __init__(self, description: str, total: int | None) -> None:
        self._bar = tqdm(desc=description.strip(), total=total, leave=False, dynamic_ncols=True)

    def step(self) -> None:
        """Move the bar."""
        self._bar.update()

    def close(self, done: bool = True) -> None:
        """Take the bar away."""
        self._bar.close()


def start_progress(description: str, total: int | None, *, warm_up: int = 0, bar: bool | None = None) -> Progress:
    """Start to show how far a loop is.

    Args:
        description: what the loop does.
        total: number of iterations, if it is known.
        warm_up: iterations that are not timed, see :class:`EstimateLines`.
        bar: a bar (True) or log lines (False); a bar if standard error is a terminal when None.

    Returns:
        Something to call after each iteration.
    """
    if sys.stderr.isatty() if bar is None else bar:
        return ProgressBar(description, total)
    return EstimateLines(description, total, warm_up=warm_up)


def enumerate_with_estimate(
    iterable: Iterable[Item],
    description: str,
    total: int | None = None,
    *,
    warm_up: int = 0,
    bar: bool | None = None,
) -> Iterator[tuple[int, Item]]:
    """Enumerate, showing how far the loop is and when it will be done.

    Args:
        iterable: what to loop over.
        description: what the loop does.
        total: number of items; ``len(iterable)``, where it has one, when None.
        warm_up: iterations that are not timed, see :class:`EstimateLines`.
        bar: a bar (True) or log lines (False); a bar if standard error is a terminal when None.

    Yields:
        Number, from 0, and item.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    progress = start_progress(description, total, warm_up=warm_up, bar=bar)
    done = False
    try:
        for number, item in enumerate(iterable):
            yield number, item
            progress.step()
        done = True
    finally:
        progress.close(done)


class ProgressHandler:
    """Shows how far an epoch is, as ``E1 Training   16/1938, done at 2018-02-28 20:52:54, 0:02:57``.

    Args:
        description: what the engine does, with ``{epoch}`` in it. The book has ``"E{epoch} Training"`` and
            ``"E{epoch} Validation "``.
        warm_up: iterations that are not timed, see :class:`EstimateLines`; the book takes the number of workers.
        bar: a bar (True) or log lines (False); a bar if standard error is a terminal when None.
    """

    def __init__(self, description: str = "E{epoch} Training", warm_up: int = 0, bar: bool | None = None) -> None:
        self.description = description
        self.warm_up = warm_up
        self.bar = bar
        self._progress: Progress | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close)
        call_on_exception(engine, lambda: self._close(done=False))

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            description = self.description.format(epoch=engine.state.epoch)
            self._progress = start_progress(description, engine.state.epoch_length, warm_up=self.warm_up, bar=self.bar)

    def _step(self) -> None:
        if self._progress is not None:
            self._progress.step()

    def _close(self, done: bool = True) -> None:
        if self._progress is not None:
            self._progress.close(done)
            self._progress = None


def _to_text(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M:%S}"
