"""TensorBoard: the book's scalars, precision-recall curves and histograms (chapters 11.9 and 12.4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import ignite.distributed as idist
import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.engines import Trainer

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import BOOK_METRICS, COUNTS
from luna_monai.training.exceptions import call_on_exception
from luna_monai.training.samples import TrainingSamples

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%d_%H.%M.%S"


class TensorBoardRun:
    """The TensorBoard folders of one run, ``OUTPUT_DIR/runs/PREFIX/TIME-{trn,val}_cls-COMMENT``, with one time.

    A folder appears with the first thing that is written into it.

    Args:
        output_dir: folder of the run.
        tb_prefix: folder below ``runs``.
        comment: end of the folders' names.
        started: when the run started; now when None.
    """

    def __init__(
        self,
        output_dir: str | Path,
        tb_prefix: str = "luna_monai",
        comment: str = "train",
        started: datetime | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.tb_prefix = tb_prefix
        self.comment = comment
        self.time_str = (started or datetime.now()).strftime(TIME_FORMAT)
        self._writers: dict[str, SummaryWriter] = {}

    def folder(self, split: str) -> Path:
        """Return the folder of ``"trn"`` or ``"val"``, which need not exist yet."""
        return self.output_dir / "runs" / self.tb_prefix / f"{self.time_str}-{split}_cls-{self.comment}"

    def writer(self, split: str) -> SummaryWriter:
        """Open a split's writer, or return the open one."""
        if split not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that other commands don't need

            self._writers[split] = SummaryWriter(str(self.folder(split)))
        return self._writers[split]

    def close(self) -> None:
        """Write what is pending and close all files; writing again opens new ones in the same folders.

        A failure to write is only logged: each epoch is written when it ends, and this may be called while a run is
        ending for that very reason.
        """
        for split, writer in self._writers.items():
            try:
                writer.close()
            except OSError as error:
                logger.warning("%s: not all was written (%s)", self.folder(split), error.strerror or error)
        self._writers.clear()

    def state_dict(self) -> dict[str, str]:
        """Return what lets a resumed run go on in the same folders."""
        return {"time_str": self.time_str}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.time_str = state["time_str"]


class TensorBoardHandler:
    """Writes an epoch's metrics, precision-recall curve and histograms, over the number of training samples seen.

    List one among the trainer's handlers (it also closes the run's files at the end) and one among the evaluator's.

    Args:
        run: the run's folders, shared by both.
        split: ``"trn"`` or ``"val"``.
        training_samples: counts the samples, shared by both.
        book: write the book's six scalars only.
    """

    def __init__(self, run: TensorBoardRun, split: str, training_samples: TrainingSamples, book: bool = False) -> None:
        self.run = run
        self.split = split
        self.training_samples = training_samples
        self.book = book

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if isinstance(engine, Trainer):
            self.training_samples.attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if isinstance(engine, Trainer):
            engine.add_event_handler(Events.COMPLETED, lambda _: self.run.close())
            call_on_exception(engine, self.run.close)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        step = self.training_samples.count
        try:
            writer = self.run.writer(self.split)
            for name, value in engine.state.metrics.items():
                wanted = name in BOOK_METRICS if self.book else name not in COUNTS
                if wanted and isinstance(value, Real) and not math.isnan(value):
                    writer.add_scalar(name, value, step)
            write_distributions(writer, engine.state.records, step)
            writer.flush()
        except OSError as error:
            folder = self.run.folder(self.split)
            raise LunaError(f"{folder}: TensorBoard's files can't be written ({error.strerror or error})") from error


def write_distributions(writer: SummaryWriter, records: pd.DataFrame, step: int) -> None:
    """Write the precision-recall curve ``pr`` and the histograms ``is_neg`` and ``is_pos``, as the book does.

    The histograms leave out what the model is sure and right about: negatives of at most 0.01 and positives of at
    least 0.99. What would be empty is left out.

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
