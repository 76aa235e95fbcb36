"""Which epoch was the best: one rule for the engine, the saved weights and the predictions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.training.metrics import is_better

logger = logging.getLogger(__name__)


class BestEpoch:
    """Remembers the best validation so far.

    An epoch is better than the best so far when, in this order:

    1. its key metric is defined and that of the best is not, or is defined and better;
    2. both key metrics are undefined, as ROC AUC is in a validation set with one class, and its fallback metric, for
       which smaller is better, is defined and smaller.

    An epoch in which both are undefined (NaN) is never the best. Equal values leave the earlier epoch in place.

    List it among the evaluator's ``val_handlers``. It keeps ``best_metric`` and ``best_metric_epoch`` of the engine's
    state to the same rule.

    Args:
        key_metric: name in ``engine.state.metrics``.
        smaller: whether the smaller key metric wins.
        fallback: name of the metric that decides while the key metric is undefined.
    """

    def __init__(self, key_metric: str = "roc_auc", smaller: bool = False, fallback: str = "loss/all") -> None:
        self.key_metric = key_metric
        self.smaller = smaller
        self.fallback = fallback
        self.epoch: int | None = None
        self.metrics: dict[str, float] = {}
        self.records: pd.DataFrame | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._compare)

    def update(self, epoch: int, metrics: Mapping[str, float], records: pd.DataFrame | None = None) -> bool:
        """Take the validation of one epoch into account.

        Args:
            epoch: its number.
            metrics: its metrics.
            records: what was said about each sample.

        Returns:
            Whether this epoch is the best so far.

        Raises:
            LunaError: when there is no metric of the names that the rule needs.
        """
        for name in (self.key_metric, self.fallback):
            if name not in metrics:
                raise LunaError(f"best epoch: no metric {name!r}; there are {', '.join(metrics)}")
        if not self._better(metrics):
            return False
        self.epoch, self.metrics, self.records = epoch, {name: float(metrics[name]) for name in metrics}, records
        return True

    def _better(self, metrics: Mapping[str, float]) -> bool:
        undefined = float("nan")
        key, best_key = metrics[self.key_metric], self.metrics.get(self.key_metric, undefined)
        if is_better(key, best_key, self.smaller):
            return True
        both_undefined = key != key and best_key != best_key
        best_fallback = self.metrics.get(self.fallback, undefined)
        return both_undefined and is_better(metrics[self.fallback], best_fallback, smaller=True)

    def _compare(self, engine: Engine) -> None:
        state = engine.state
        if self.update(state.epoch, state.metrics, getattr(state, "records", None)):
            name = self.key_metric if self.metrics[self.key_metric] == self.metrics[self.key_metric] else self.fallback
            logger.info("E%d is the best epoch so far, %s %.4f", state.epoch, name, self.metrics[name])
        state.best_metric = self.metrics.get(self.key_metric, float("nan"))
        state.best_metric_epoch = -1 if self.epoch is None else self.epoch

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; the records are in the run's predictions."""
        return {"epoch": self.epoch, "metrics": dict(self.metrics)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.epoch, self.metrics, self.records = state["epoch"], dict(state["metrics"]), None
