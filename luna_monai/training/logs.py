"""What a run shows: the book's console lines, TensorBoard (chapters 11.6, 11.9 and 12.4), and the last lines."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from numbers import Real
from typing import TYPE_CHECKING

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS
from luna_monai.training.metrics import FROC_METRICS
from luna_monai.training.run_state import RunState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_RANKING = {
    "pr/precision": "precision",
    "pr/recall": "recall",
    "pr/f1_score": "F1",
    "roc_auc": "ROC AUC",
    "average_precision": "AP",
}


class ConsoleHandler:
    """Logs an epoch's metrics as the book does (chapter 11.6), with ``n/a`` for what is undefined.

    Args:
        split: ``"trn"`` or ``"val"``.
        book: log the book's three lines only, not precision, recall, F1, the areas under curves and LUNA16's score.
        prefix: start of each line, with ``{epoch}`` in it.
    """

    def __init__(self, split: str, book: bool = False, prefix: str = "E{epoch} ") -> None:
        self.split = split
        self.book = book
        self.prefix = prefix

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

    def number(name: str, form: str, width: int) -> str:
        return "n/a".rjust(width) if math.isnan(metrics[name]) else format(metrics[name], form)

    lines = []
    for suffix, group in (("", "all"), ("_neg", "neg"), ("_pos", "pos")):
        loss, correct = number(f"loss/{group}", ".4f", 6), number(f"correct/{group}", "-5.1f", 5)
        line = f"{split + suffix:8} {loss} loss, {correct}% correct"
        counts = f" ({metrics[f'correct_count/{group}']} of {metrics[f'count/{group}']})" if suffix else ", "
        lines.append(line + counts)
    if not book:
        lines.append(f"{split:8} " + ", ".join(f"{number(name, '.4f', 6)} {title}" for name, title in _RANKING.items()))
    if not book and FROC_METRICS[-1] in metrics:
        sensitivities = " ".join(number(name, ".3f", 5) for name in FROC_METRICS[1:])
        lines.append(
            f"{split:8} {number('cpm', '.4f', 6)} CPM, sensitivity {sensitivities} at 1/8 1/4 1/2 1 2 4 8 false "
            "positives per scan, counted as in LUNA16"
        )
    return lines


class RunSummary:
    """Logs, at the end of a run, the best epoch's results in validation, and where everything is.

    List it last among the ``train_handlers``. ``luna-monai report`` shows the worst errors.

    Args:
        run_state: knows the folder, the best epoch and its records.
    """

    def __init__(self, run_state: RunState) -> None:
        self.run_state = run_state

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        state, records = self.run_state, self.run_state.best_records
        if records is None:
            logger.info("No best epoch: the validation metrics are undefined")
        else:
            correct = 100 * ((records["probability"] > 0.5) == (records["class"] == 1)).mean()
            logger.info(
                "Best epoch: %s of %d, %.1f%% of the validation candidates correct, ROC AUC %.4f",
                *(state.best_epoch, engine.state.epoch, correct, state.best_metrics.get("roc_auc", math.nan)),
            )
        for text, name in (
            ("Weights:     ", "model.pt"),
            ("Metrics:     ", "metrics.csv"),
            ("Predictions: ", "predictions/val.csv"),
            ("Plots:       tensorboard --logdir ", "runs"),
        ):
            if (state.output_dir / name).exists():
                logger.info("%s%s", text, state.output_dir / name)


class TensorBoardHandler:
    """Writes an epoch's metrics, precision-recall curve and histograms, over the number of training samples seen.

    MONAI's ``TensorBoardStatsHandler`` makes its folder before there is anything to write. List one among the trainer's
    handlers (it also closes the run's files at the end) and one among the evaluator's.

    Args:
        run_state: the run's samples and folders, shared by both.
        split: ``"trn"`` or ``"val"``.
        book: write the book's six scalars only.
    """

    def __init__(self, run_state: RunState, split: str, book: bool = False) -> None:
        self.run_state = run_state
        self.split = split
        self.book = book

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        is_trainer = isinstance(engine, Trainer)
        if is_trainer:
            self.run_state.attach(engine)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if idist.get_rank() == 0 and is_trainer:
            engine.add_event_handler(Events.COMPLETED, lambda _: self.run_state.close())

    def _write(self, engine: Engine) -> None:
        step = self.run_state.samples
        try:
            writer = self.run_state.writer(self.split)
            for name, value in engine.state.metrics.items():
                wanted = name in BOOK_METRICS if self.book else name not in COUNTS
                if wanted and isinstance(value, Real) and not math.isnan(value):
                    writer.add_scalar(name, value, step)
            write_distributions(writer, engine.state.records, step)
            writer.flush()
        except OSError as error:
            folder = self.run_state.folder(self.split)
            raise LunaError(f"{folder}: TensorBoard's files cannot be written ({error.strerror or error})") from error


def write_distributions(writer: SummaryWriter, records: pd.DataFrame, step: int) -> None:
    """Write the precision-recall curve ``pr`` and the histograms ``is_neg`` and ``is_pos``, as the book does.

    The histograms leave out confident correct predictions: negatives of at most 0.01 and positives of at least 0.99.
    Empty ones are left out.

    Args:
        writer: where to.
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
