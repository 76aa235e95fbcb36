"""Console lines, TensorBoard output and time estimates of a run (chapters 11.5, 11.6, 11.9 and 12.4 of the book)."""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from luna_monai.files import write_errors
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, rate_name
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS, RANKING_METRICS
from luna_monai.progress import enumerate_with_estimate
from luna_monai.training.metrics import FROC_METRICS
from luna_monai.training.run_state import RunState

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class ConsoleHandler:
    """Logs the metrics of an epoch as the book does (chapter 11.6). Undefined values are shown as ``n/a``.

    Args:
        split: ``"trn"`` or ``"val"``.
        book: log only the book's three lines, without precision, recall, F1, areas under curves and LUNA16's score.
        prefix: start of each line; ``{epoch}`` is replaced by the number of the epoch.
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
    """Format the metrics of an epoch as console lines.

    Args:
        split: ``"trn"`` or ``"val"``.
        metrics: metrics of :class:`~luna_monai.training.metrics.CandidateMetrics` and, if available, of
            :class:`~luna_monai.training.metrics.FrocMetrics`.
        book: return only the book's three lines.

    Returns:
        A line each for all samples, negatives, positives, ranking metrics, and LUNA16's score if it is available.
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
        rates = f"{' '.join(map(rate_name, FALSE_POSITIVES_PER_SCAN))} false positives per scan, counted as in LUNA16"
        lines.append(f"{split:8} {number('cpm', '6.4f')} CPM, sensitivity {sensitivities} at {rates}")
    return lines


@dataclass(eq=False)
class TensorBoardHandler:
    """Writes metrics, precision-recall curve and histograms of an epoch, over the number of training samples seen.

    MONAI's ``TensorBoardStatsHandler`` writes scalars only, and without a writer creates its folder immediately. Add
    one handler to the trainer, where it also counts the samples and closes the files at the end, and one to the
    evaluator.

    Args:
        run_state: holds the number of samples and the folders; the same object for both handlers.
        split: ``"trn"`` or ``"val"``.
        book: write only the book's six scalars.
    """

    run_state: RunState
    split: str
    book: bool = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if idist.get_rank() == 0:
            if isinstance(engine, Trainer):
                self.run_state.attach(engine)  # before _write, which needs the number of samples
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

    The histograms omit confident correct predictions: negatives of at most 0.01 and positives of at least 0.99.
    Empty histograms are not written.

    Args:
        writer: TensorBoard's ``SummaryWriter``.
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


@dataclass(eq=False)
class ProgressHandler:
    """Logs the progress of an epoch, such as ``E1 Training   16/1938, done at 2018-02-28 20:52:54, 0:02:57``.

    Args:
        description: start of each line; ``{epoch}`` is replaced by the number of the epoch. The book uses
            ``"E{epoch} Training"`` and ``"E{epoch} Validation "``.
        warm_up: iterations that are not timed, see :func:`~luna_monai.progress.enumerate_with_estimate`.
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
