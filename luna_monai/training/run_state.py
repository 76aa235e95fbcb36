"""What the two engines of a run share: samples trained on, the best epoch, metrics so far, TensorBoard's folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator

logger = logging.getLogger(__name__)

TIME_FORMAT = "%Y-%m-%d_%H.%M.%S"
_STATE = ("samples", "best_epoch", "best_metrics", "validations_since_best", "history", "names")


@dataclass(eq=False)
class RunState:
    """Counts training samples, selects the best epoch and names TensorBoard's folders; saved in each checkpoint.

    List it among the evaluator's handlers, after those that compute metrics; the trainer's TensorBoardHandler attaches
    it before itself. An epoch is better than the best so far when, in this order:

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
        validations_since_best: validations after the best epoch, or all while there is none.
        history: rows of ``metrics.csv``.
        names: ``tb_prefix``, ``comment``, and ``time``, the start of the run.
    """

    output_dir: str | Path
    key_metric: str = "roc_auc"
    tb_prefix: str = "luna_monai"
    comment: str = "train"
    samples: int = field(default=0, init=False)
    best_epoch: int | None = field(default=None, init=False)
    best_metrics: dict[str, float] = field(default_factory=dict, init=False)
    validations_since_best: int = field(default=0, init=False)
    history: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        time = datetime.now().strftime(TIME_FORMAT)
        self.names = {"tb_prefix": self.tb_prefix, "comment": self.comment, "time": time}
        self._writers: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, whose samples are counted, or an evaluator, whose epochs are compared."""
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, self._compare if isinstance(engine, Evaluator) else self._count
        )

    def _count(self, engine: Engine) -> None:
        self.samples += len(engine.state.records)

    def _compare(self, engine: Engine) -> None:
        if self.update(engine.state.epoch, engine.state.metrics):
            name = "loss/all" if math.isnan(self.best_metrics[self.key_metric]) else self.key_metric
            logger.info("E%d is the best epoch so far, %s %.4f", self.best_epoch, name, self.best_metrics[name])

    def update(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Take the validation of one epoch into account.

        Args:
            epoch: its number.
            metrics: its metrics.

        Returns:
            Whether this epoch is the best so far.
        """
        better = self._rank(metrics) > self._rank(self.best_metrics)
        self.validations_since_best = 0 if better else self.validations_since_best + 1
        if better:
            self.best_epoch = epoch
            self.best_metrics = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        return better

    def _rank(self, metrics: Mapping[str, float]) -> tuple[int, float]:
        key, loss = (metrics.get(name, math.nan) for name in (self.key_metric, "loss/all"))
        if not math.isnan(key):
            return 2, -key if self.key_metric.startswith("loss") else key
        return (0, 0.0) if math.isnan(loss) else (1, -loss)

    def folder(self, split: str) -> Path:
        """Return TensorBoard's folder of ``"trn"`` or ``"val"``, which need not exist yet."""
        name = f"{self.names['time']}-{split}_cls-{self.names['comment']}"
        return Path(self.output_dir) / "runs" / self.names["tb_prefix"] / name

    def writer(self, split: str) -> Any:
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
        """Return the state for a checkpoint, of numbers and text."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name in _STATE:
            setattr(self, name, state[name])


@dataclass(eq=False)
class EarlyStopping:
    """Ends training after a number of validations without a new best epoch.

    ignite's handler of this name trains another epoch when a run that it has stopped is resumed, and takes NaN for an
    improvement. List it after :class:`~luna_monai.training.run_folder.RunFolder`, which restores the state.

    Args:
        run_state: knows the best epoch.
        patience: validations after that of the best epoch; None never stops.
    """

    run_state: RunState
    patience: int | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        since, best = self.run_state.validations_since_best, self.run_state.best_epoch or "none so far"
        if self.patience is not None and since >= self.patience:
            text = "E%d: training stops early, %d validations without a new best epoch (%s)"
            logger.info(text, engine.state.epoch, since, best)
            engine.terminate()
