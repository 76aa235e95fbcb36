"""TensorBoard: the book's scalars, precision-recall curves and histograms (chapters 11.9 and 12.4)."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS
from luna_monai.training.run_state import RunState

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


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
        if isinstance(engine, Trainer):
            self.run_state.attach(engine)
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if isinstance(engine, Trainer):
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
    bins = [edge / 50 for edge in range(51)]
    unsure = {"is_neg": (label == 0) & (probability > 0.01), "is_pos": (label == 1) & (probability < 0.99)}
    for name, mask in unsure.items():
        if mask.any():
            writer.add_histogram(name, probability[mask], step, bins=bins)
