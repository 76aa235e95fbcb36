"""What a run shows: the book's console lines, TensorBoard and estimates of time (chapters 11.5, 11.6, 11.9, 12.4)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from numbers import Real
from typing import Any, TypeVar

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from luna_monai.files import write_errors
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS, RANKING_METRICS
from luna_monai.training.metrics import FROC_METRICS
from luna_monai.training.run_state import RunState

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_SILENCE_S = 30  # a line comes at least this often


@dataclass(eq=False)
class ConsoleHandler:
    """Logs an epoch's metrics as the book does (chapter 11.6), with ``n/a`` for what is undefined.

    Args:
        split: ``"trn"`` or ``"val"``.
        book: log the book's three lines only, not precision, recall, F1, the areas under curves and LUNA16's score.
        prefix: start of each line, with ``{epoch}`` in it.
    """

    split: str
    book: bool = False
    prefix: str = "E{epoch} "

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        for line in epoch_lines(self.split, engine.state.metrics, self.book):
            logger.info("%s%s", self.prefix.format(epoch=engine.state.epoch), line)


def epoch_lines(split: str, metrics: Mapping[str, float], book: bool = False) -> list[str]:
    """Describe an epoch: all samples, negatives, positives, ranking metrics, and LUNA16's score where there is one.

    Args:
        split: ``"trn"`` or ``"val"``.
        metrics: metrics of :class:`~luna_monai.training.metrics.CandidateMetrics`, and of
            :class:`~luna_monai.training.metrics.FrocMetrics` where there are any.
        book: the book's three lines only.
    """

    def number(name: str, form: str) -> str:
        return format(metrics[name], form).replace("nan", "n/a")

    lines = []
    for suffix, group in (("", "all"), ("_neg", "neg"), ("_pos", "pos")):
        counts = f" ({metrics[f'correct_count/{group}']} of {metrics[f'count/{group}']})" if suffix else ", "
        loss, correct = number(f"loss/{group}", "6.4f"), number(f"correct/{group}", "5.1f")
        lines.append(f"{split + suffix:8} {loss} loss, {correct}% correct{counts}")
    if not book:
        names = zip(RANKING_METRICS, ("precision", "recall", "F1", "ROC AUC", "AP"), strict=True)
        lines.append(f"{split:8} " + ", ".join(f"{number(name, '6.4f')} {title}" for name, title in names))
    if not book and metrics.keys() >= set(FROC_METRICS):
        sensitivities = " ".join(number(name, "5.3f") for name in FROC_METRICS[1:])
        rates = "1/8 1/4 1/2 1 2 4 8 false positives per scan, counted as in LUNA16"
        lines.append(f"{split:8} {number('cpm', '6.4f')} CPM, sensitivity {sensitivities} at {rates}")
    return lines


@dataclass(eq=False)
class TensorBoardHandler:
    """Writes an epoch's metrics, precision-recall curve and histograms, over the number of training samples seen.

    MONAI's ``TensorBoardStatsHandler`` makes its folder before there is anything to write. List one among the trainer's
    handlers (it also counts its samples, and closes the run's files at the end) and one among the evaluator's.

    Args:
        run_state: the run's samples and folders, shared by both.
        split: ``"trn"`` or ``"val"``.
        book: write the book's six scalars only.
    """

    run_state: RunState
    split: str
    book: bool = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if idist.get_rank() == 0:
            if isinstance(engine, Trainer):
                self.run_state.attach(engine)  # it counts the samples first
                engine.add_event_handler(Events.COMPLETED, lambda _: self.run_state.close())
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        step = self.run_state.samples
        with write_errors(self.run_state.folder(self.split)):
            writer = self.run_state.writer(self.split)
            for name, value in engine.state.metrics.items():
                wanted = name in BOOK_METRICS if self.book else name not in COUNTS
                if wanted and isinstance(value, Real) and not math.isnan(value):
                    writer.add_scalar(name, value, step)
            write_distributions(writer, engine.state.records, step)
            writer.flush()


def write_distributions(writer: Any, records: pd.DataFrame, step: int) -> None:
    """Write the precision-recall curve ``pr`` and the histograms ``is_neg`` and ``is_pos``, as the book does.

    The histograms leave out confident correct predictions: negatives of at most 0.01 and positives of at least 0.99.
    Empty ones are left out.

    Args:
        writer: TensorBoard's.
        records: ``class`` and ``probability`` of each sample.
        step: number of training samples seen.
    """
    records = records[np.isfinite(records["probability"])]
    label, probability = records["class"].to_numpy(), records["probability"].to_numpy()
    if len(records):
        writer.add_pr_curve("pr", label, probability, step)
    unsure = {"is_neg": (label == 0) & (probability > 0.01), "is_pos": (label == 1) & (probability < 0.99)}
    for name, mask in unsure.items():
        if mask.any():
            writer.add_histogram(name, probability[mask], step, bins=[edge / 50 for edge in range(51)])


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
