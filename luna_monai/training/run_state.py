"""The state that trainer and evaluator share: number of samples, best epoch, metrics and TensorBoard writers."""

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
    """Counts training samples, selects the best epoch and names TensorBoard's folders. Checkpoints include this state.

    Add it to the evaluator's handlers, after those that compute metrics. :class:`TensorBoardHandler
    <luna_monai.training.logs.TensorBoardHandler>` attaches it to the trainer. An epoch becomes the best epoch in two
    cases:

    1. Its key metric is defined, and that of the best epoch so far is undefined or worse.
    2. Both key metrics are undefined, such as ROC AUC without a positive sample, and its loss is defined and smaller.

    An epoch whose key metric and loss are both undefined (NaN) is never the best. If values are equal, the earlier
    epoch stays the best.

    Args:
        output_dir: the run folder.
        key_metric: name of a validation metric. Smaller is better for ``loss/…``, larger is better for all others.
        tb_prefix: folder of TensorBoard's data below ``output_dir/runs``.
        comment: last part of the names of TensorBoard's folders.

    Attributes:
        samples: number of training samples seen in all epochs and processes. A sample drawn twice counts twice.
        best_epoch: number of the best epoch; None if there is none yet.
        best_metrics: validation metrics of the best epoch.
        validations_since_best: number of validations after the best epoch, or of all validations without a best epoch.
        history: rows of ``metrics.csv``.
        names: ``tb_prefix``, ``comment``, and ``time``, the start time of the run.
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
        """Register with a trainer to count its samples, or with an evaluator to compare its epochs."""
        handler = self._compare if isinstance(engine, Evaluator) else self._count
        engine.add_event_handler(Events.EPOCH_COMPLETED, handler)

    def _count(self, engine: Engine) -> None:
        self.samples += len(engine.state.records)

    def _compare(self, engine: Engine) -> None:
        if self.update(engine.state.epoch, engine.state.metrics):
            name = "loss/all" if math.isnan(self.best_metrics[self.key_metric]) else self.key_metric
            logger.info("E%d is the best epoch so far, %s %.4f", self.best_epoch, name, self.best_metrics[name])

    def update(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Compare the validation metrics of an epoch with those of the best epoch so far.

        Args:
            epoch: number of the epoch.
            metrics: validation metrics of the epoch.

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
        """Return TensorBoard's folder of ``"trn"`` or ``"val"``. The folder may not exist yet."""
        name = f"{self.names['time']}-{split}_cls-{self.names['comment']}"
        return Path(self.output_dir) / "runs" / self.names["tb_prefix"] / name

    def writer(self, split: str) -> Any:
        """Return the TensorBoard writer of a split. The first call creates its folder."""
        if split not in self._writers:
            from torch.utils.tensorboard import SummaryWriter  # the import takes a second

            self._writers[split] = SummaryWriter(str(self.folder(split)))
        return self._writers[split]

    def close(self) -> None:
        """Close TensorBoard's files. Later writes create new files in the same folders."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers and strings, for a checkpoint."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        for name in _STATE:
            setattr(self, name, state[name])


@dataclass(eq=False)
class EarlyStopping:
    """Stops training after a number of validations without a new best epoch.

    ignite's ``EarlyStopping`` trains one more epoch when a stopped run is resumed, and treats NaN as an improvement.
    Add this handler after :class:`~luna_monai.training.run_folder.RunFolder`, which restores the state.

    Args:
        run_state: holds the best epoch.
        patience: number of validations without a new best epoch after which training stops; None to never stop.
    """

    run_state: RunState
    patience: int | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        since, best = self.run_state.validations_since_best, self.run_state.best_epoch or "none"
        if self.patience is not None and since >= self.patience:
            text = "E%d: training stops early, %d validations without a new best epoch (best epoch: %s)"
            logger.info(text, engine.state.epoch, since, best)
            engine.terminate()
