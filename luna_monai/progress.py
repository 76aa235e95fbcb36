"""Progress of a loop in the log (chapter 11.5 of the book)."""

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30  # between two lines


def enumerate_with_estimate(
    iterable: Iterable[Any], description: str, total: int | None = None, *, warm_up: int = 0
) -> Iterator[tuple[int, Any]]:
    """Enumerate the items of a loop, and log its progress and the estimated time of completion.

    A line is logged after 4, 8, 16, 32 … iterations as in the book, and at least every 30 s.

    Args:
        iterable: the items.
        description: start of each line, such as ``E1 Training``.
        total: number of items; required if ``iterable`` has no length.
        warm_up: number of first iterations that are not timed, because workers are still starting. No line is logged
            before twice this number. The book uses the number of workers.

    Yields:
        Index, from 0, and item.
    """
    total = len(iterable) if total is None else total  # type: ignore[arg-type]
    due = 4
    while due < 2 * warm_up:
        due *= 2
    logger.info("%s ----/%d, starting", description, total)
    start = logged = time.time()
    for number, item in enumerate(iterable, 1):
        yield number - 1, item
        now = time.time()
        if (number == due or now - logged >= _LONGEST_PAUSE_S) and number > warm_up:
            seconds = (now - start) / (number - warm_up) * (total - warm_up)
            left = timedelta(seconds=int(seconds))
            logger.info("%s %4d/%d, %s, %s", description, number, total, _done_at(start + seconds), left)
            logged = now
        due *= 2 if number == due else 1
        start = now if number == warm_up else start
    logger.info("%s ----/%d, %s", description, total, _done_at(time.time()))


def _done_at(timestamp: float) -> str:
    return f"done at {datetime.fromtimestamp(timestamp):%Y-%m-%d %H:%M:%S}"
