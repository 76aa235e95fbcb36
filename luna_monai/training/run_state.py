"""What the two engines of a run share: samples trained on, the best epoch, metrics so far, TensorBoard's folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.utils import CommonKeys

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%d_%H.%M.%S"


class RunState:
    """Counts training samples, selects the best epoch and names TensorBoard's folders; saved in each checkpoint.

    List it among the evaluator's handlers, after those that compute metrics; the trainer's handlers attach it before
    themselves. An epoch is better than the best so far when, in this order:

    1. its key metric is defined, and that of the best is undefined or worse;
    2. both key metrics are undefined, as ROC AUC is where one class is absent, and its loss is defined and smaller.

    An epoch in which both are undefined (NaN) is never the best. Equal values leave the earlier epoch in place.

    Args:
        output_dir: folder of the run.
        key_metric: name of a validation metric; the smaller value of a ``loss/…`` wins, else the larger one.
        tb_prefix: folder of TensorBoard's data below ``output_dir/runs``.
        comment: end of the names of TensorBoard's folders.

    Attributes:
        samples: training samples seen in all epochs and processes, a sample drawn twice counts twice.
        best_epoch: number of the best epoch; None while there is none.
        best_metrics: its validation metrics.
        best_records: its validation records: ``row``, ``class``, ``probability`` and ``loss``.
        validations_since_best: validations after the best epoch, or all while there is none.
        history: rows of ``metrics.csv``.
        names: ``tb_prefix``, ``comment``, and ``time``, the start of the run.
    """

    def __init__(
        self,
        output_dir: str | Path,
        key_metric: str = "roc_auc",
        tb_prefix: str = "luna_monai",
        comment: str = "train",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.key_metric = key_metric
        self.samples = 0
        self.best_epoch: int | None = None
        self.best_metrics: dict[str, float] = {}
        self.best_records: pd.DataFrame | None = None
        self.validations_since_best = 0
        self.history: list[dict[str, Any]] = []
        self.names = {"tb_prefix": tb_prefix, "comment": comment, "time": datetime.now().strftime(TIME_FORMAT)}
        self._writers: dict[str, SummaryWriter] = {}
        self._samples_in_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, whose samples are counted, or an evaluator, whose epochs are compared."""
        if isinstance(engine, Evaluator):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._compare)
        elif not engine.has_event_handler(self._count):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete_epoch)

    def _count(self, engine: Engine) -> None:
        self._samples_in_epoch += len(engine.state.output[CommonKeys.LABEL])

    def _complete_epoch(self) -> None:
        self.samples += int(idist.all_reduce(self._samples_in_epoch))
        self._samples_in_epoch = 0

    def update(self, epoch: int, metrics: Mapping[str, float], records: pd.DataFrame | None = None) -> bool:
        """Take the validation of one epoch into account.

        Args:
            epoch: its number.
            metrics: its metrics.
            records: a row for each sample.

        Returns:
            Whether this epoch is the best so far.
        """
        better = self._rank(metrics) > self._rank(self.best_metrics)
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        if better:
            self.best_epoch, self.best_records = epoch, records
            self.best_metrics = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        return better

    def _rank(self, metrics: Mapping[str, float]) -> tuple[int, float]:
        key, loss = (metrics.get(name, math.nan) for name in (self.key_metric, "loss/all"))
        if not math.isnan(key):
            return 2, -key if self.key_metric.startswith("loss") else key
        return (0, 0.0) if math.isnan(loss) else (1, -loss)

    def _compare(self, engine: Engine) -> None:
        state = engine.state
        if self.update(state.epoch, state.metrics, getattr(state, "records", None)):
            name = "loss/all" if math.isnan(self.best_metrics[self.key_metric]) else self.key_metric
            logger.info("E%d is the best epoch so far, %s %.4f", state.epoch, name, self.best_metrics[name])
        # MONAI's own comparison never replaces a first value of NaN.
        state.best_metric = self.best_metrics.get(self.key_metric, math.nan)
        state.best_metric_epoch = -1 if self.best_epoch is None else self.best_epoch

    def folder(self, split: str) -> Path:
        """Return TensorBoard's folder of ``"trn"`` or ``"val"``, which need not exist yet."""
        name = f"{self.names['time']}-{split}_cls-{self.names['comment']}"
        return self.output_dir / "runs" / self.names["tb_prefix"] / name

    def writer(self, split: str) -> SummaryWriter:
        """Return a split's TensorBoard writer; its folder appears with the first call."""
        if split not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # a second of imports that other commands do not need

            self._writers[split] = SummaryWriter(str(self.folder(split)))
        return self._writers[split]

    def close(self) -> None:
        """Close TensorBoard's files; writing again opens new ones in the same folders."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, of numbers, text and tensors."""
        state = {name: value for name, value in vars(self).items() if name in _STATE}
        if self.best_records is not None:
            state["best_records"] = {
                name: torch.tensor(values.to_numpy()) for name, values in self.best_records.items()
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name in _STATE:
            setattr(self, name, state[name])
        if self.best_records is not None:
            self.best_records = pd.DataFrame({name: value.numpy() for name, value in self.best_records.items()})


_STATE = ("samples", "best_epoch", "best_metrics", "best_records", "validations_since_best", "history", "names")


class EarlyStopping:
    """Ends training after a number of validations without a new best epoch.

    ignite's handler of this name trains another epoch when a run that it has stopped is resumed, and takes NaN for an
    improvement. List it after :class:`~luna_monai.training.run_folder.RunFolder`, which restores the state.

    Args:
        run_state: knows the best epoch.
        patience: validations after that of the best epoch; None never stops.
    """

    def __init__(self, run_state: RunState, patience: int | None = None) -> None:
        self.run_state = run_state
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._check, self.patience)

    def _check(self, engine: Engine, patience: int) -> None:
        since, best = self.run_state.validations_since_best, self.run_state.best_epoch
        if since >= patience:
            text = "none so far" if best is None else best
            epoch = engine.state.epoch
            logger.info("E%d: training stops early, %d validations without a new best epoch (%s)", epoch, since, text)
            engine.terminate()
