"""Metrics of an epoch, from the records of its samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import METRIC_NAMES, per_class_metrics
from luna_monai.metrics.records import CandidateRecords


class CandidateMetrics:
    """Records every sample of an epoch and computes all of ``METRIC_NAMES`` at its end.

    Meant as the one entry of ``key_train_metric`` or ``key_val_metric`` of a MONAI engine with ``decollate=False``::

        key_val_metric:
          roc_auc: {_target_: luna_monai.training.CandidateMetrics, drop_duplicates: true}

    The name chosen there is what the engine compares; all others are in ``engine.state.metrics`` beside it, and the
    records are ``engine.state.records``, a table with ``row``, ``class``, ``probability`` and ``loss``.

    Args:
        loss_function: gives the (N,) losses of (N, 2) logits and (N,) labels; cross entropy when None. A module of
            torch needs ``reduction="none"``.
        threshold: a probability above it is a decision for class 1.
        drop_duplicates: keep one record of a row: for validation, where distributed samplers repeat samples.
    """

    def __init__(
        self,
        loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        threshold: float = 0.5,
        drop_duplicates: bool = False,
    ) -> None:
        self.loss_function = loss_function or torch.nn.CrossEntropyLoss(reduction="none")
        self.threshold = threshold
        self.records = CandidateRecords(drop_duplicates=drop_duplicates)

    def attach(self, engine: Engine, name: str) -> None:
        """Register with an engine.

        Args:
            engine: a trainer or evaluator whose batches are dicts with ``row``, and whose output is a dict with
                ``pred`` (logits, (N, 2)) and ``label`` (N,).
            name: the metric that the engine compares.

        Raises:
            LunaError: when there is no metric of that name.
        """
        if name not in METRIC_NAMES:
            raise LunaError(f"key metric {name!r}: no such metric; there are {', '.join(METRIC_NAMES)}")
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _start(self) -> None:
        self.records.reset()

    @torch.no_grad()
    def _update(self, engine: Engine) -> None:
        logits = engine.state.output[CommonKeys.PRED].detach().float()
        label = engine.state.output[CommonKeys.LABEL]
        loss = self.loss_function(logits, label)
        if loss.shape != label.shape:
            raise LunaError(
                f"the loss function of CandidateMetrics must give one loss a sample, {tuple(label.shape)}, and gave "
                f"{tuple(loss.shape)}; set reduction: none"
            )
        self.records.append(engine.state.batch["row"], label, logits.softmax(dim=1)[:, 1], loss)

    def _complete(self, engine: Engine) -> None:
        frame = self.records.to_frame()
        self.records.reset()
        engine.state.records = frame
        engine.state.metrics.update(
            per_class_metrics(frame["class"], frame["probability"], frame["loss"], self.threshold)
        )


def is_better(current: float, best: float, smaller: bool = False) -> bool:
    """Tell whether a metric has improved; the ``metric_cmp_fn`` of a MONAI engine.

    Args:
        current: this epoch's value.
        best: the best so far.
        smaller: whether the smaller value wins, as for a loss.

    Returns:
        False when ``current`` is NaN; else True when ``best`` is NaN or worse. Equal values are no improvement.
    """
    if math.isnan(current):
        return False
    if math.isnan(best):
        return True
    return current < best if smaller else current > best
