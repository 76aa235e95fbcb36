"""Metrics of an epoch, from the records of its samples."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys, evenly_divisible_all_gather

from luna_monai.data import DatasetScans
from luna_monai.data.tables import COORDINATES, read_findings
from luna_monai.errors import LunaError
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, evaluate_froc, evaluated_scans
from luna_monai.metrics.per_class import per_class_metrics

logger = logging.getLogger(__name__)

#: Names in ``engine.state.metrics``: the CPM, and the sensitivity at each of LUNA16's rates of false positives.
FROC_METRICS = ("cpm", *(f"sensitivity/{rate:g}" for rate in FALSE_POSITIVES_PER_SCAN))

#: Columns of the records, in this order, and their types.
RECORD_COLUMNS = {"row": torch.int64, "class": torch.int64, "probability": torch.float32, "loss": torch.float32}

_LOSS_EVERY = 50  # iterations between two checks, because each check waits for the GPU


class CandidateMetrics:
    """Records every sample of an epoch and computes all of ``METRIC_NAMES`` at the end of the epoch.

    Use it as the only entry of ``key_train_metric`` or ``key_val_metric`` of a MONAI engine with ``decollate=False``;
    see :func:`key_metric`. The metrics are stored in ``engine.state.metrics``, and the samples in
    ``engine.state.records``, a table with ``row``, ``class``, ``probability`` and ``loss``.

    Args:
        loss_function: maps (N, 2) logits and (N,) labels to (N,) losses; None for cross entropy. A loss of
            ``torch.nn`` needs ``reduction="none"``.
    """

    def __init__(self, loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> None:
        self.loss_function = loss_function or torch.nn.CrossEntropyLoss(reduction="none")
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def attach(self, engine: Engine, name: str) -> None:
        """Register with an engine.

        Args:
            engine: a trainer or evaluator whose batches are dicts with ``row``, and whose output is a dict with
                ``pred`` (logits, (N, 2)) and ``label`` (N,).
            name: the metric by which the engine compares epochs.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self._batches.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete, name)

    @torch.no_grad()
    def _update(self, engine: Engine) -> None:
        logits = engine.state.output[CommonKeys.PRED].detach().float()
        label = engine.state.output[CommonKeys.LABEL]
        loss = self.loss_function(logits, label)
        if loss.shape != label.shape:
            raise LunaError("loss_function: must return one loss per sample; set loss_function#reduction=none")
        self._batches.append((engine.state.batch["row"], label, logits.softmax(dim=1)[:, 1], loss))

    def _complete(self, engine: Engine, name: str) -> None:
        frame = gather_records(self._batches)
        self._batches.clear()
        engine.state.records = frame
        engine.state.metrics.update(per_class_metrics(frame["class"], frame["probability"], frame["loss"]))
        engine.state.metrics.setdefault(name, math.nan)  # FrocMetrics sets it later, in validation only


def gather_records(batches: Sequence[tuple[torch.Tensor, ...]]) -> pd.DataFrame:
    """Copy the records of all processes to the CPU.

    Every process must call this function, and every process gets the whole table.

    Args:
        batches: for each batch the row in the candidate table, class, probability of class 1 and loss, each (N,).

    Returns:
        Table with ``row`` and ``class`` (int64), ``probability`` and ``loss`` (float32), in the order of the processes,
        and of the batches within each process.
    """
    columns = zip(*(batches or [(torch.empty(0),) * len(RECORD_COLUMNS)]), strict=True)
    table = pd.DataFrame()
    for (name, dtype), values in zip(RECORD_COLUMNS.items(), columns, strict=True):
        table[name] = evenly_divisible_all_gather(torch.cat(values).to(dtype), concat=True).cpu().numpy()
    return table


def key_metric(name: str, loss_function: Callable) -> dict[str, CandidateMetrics]:
    """Make the ``key_train_metric`` or ``key_val_metric`` of a MONAI engine.

    Args:
        name: the metric that decides which epoch is the best: one of ``METRIC_NAMES`` or ``FROC_METRICS``.
        loss_function: see :class:`CandidateMetrics`.

    Returns:
        A :class:`CandidateMetrics` by the name of the metric.
    """
    return {name: CandidateMetrics(loss_function)}


class FrocMetrics:
    """Evaluates the records of an epoch as LUNA16 does, and adds ``FROC_METRICS`` to the engine's metrics.

    An annotated nodule without a candidate counts as missed. Several candidates on one nodule count as one hit. All
    metrics are NaN if the scans have no annotated nodule, or if a probability is not finite. Add this handler before
    the handlers that show or write metrics.

    Args:
        candidates: the validation candidates, indexed by row.
        all_candidates: the whole candidate table. Scans without any candidate are evaluated too, see
            :func:`~luna_monai.metrics.froc.evaluated_scans`.
        scans: the CTs on disk, and the folder with ``annotations.csv`` and, if there is one,
            ``annotations_excluded.csv``.

    Raises:
        LunaError: if one of these tables is damaged, or ``annotations.csv`` is missing.
    """

    def __init__(self, candidates: pd.DataFrame, all_candidates: pd.DataFrame, scans: DatasetScans) -> None:
        self.positions = candidates[["seriesuid", *COORDINATES]]
        self.seriesuids = evaluated_scans(candidates["seriesuid"], all_candidates["seriesuid"], scans.paths)
        self.annotations, self.excluded = read_findings(scans.dataset_dir)

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has :class:`CandidateMetrics`."""
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: engine.state.metrics.update(self.evaluate(engine.state.records))
        )

    def evaluate(self, records: pd.DataFrame) -> dict[str, float]:
        """Compute a value for each of ``FROC_METRICS`` from ``row`` and ``probability`` of each candidate."""
        if not np.isfinite(records["probability"]).all():
            return dict.fromkeys(FROC_METRICS, math.nan)
        submission = self.positions.loc[records["row"]].assign(probability=records["probability"].to_numpy())
        result = evaluate_froc(submission, self.annotations, self.excluded, self.seriesuids)
        return dict(zip(FROC_METRICS, [result.cpm, *result.sensitivity.tolist()], strict=True))


@dataclass(eq=False)
class CheckLoss:
    """Stops a run with an error when the training loss is not finite.

    The loss is checked every 50 iterations and at the end of each epoch. ignite's ``TerminateOnNan`` ends the run
    without an error, and waits for the GPU in each iteration.

    Args:
        keep_going: log one warning and continue, as the book's training does.
    """

    keep_going: bool = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self._warned = False
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=_LOSS_EVERY) | Events.EPOCH_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        if self._warned or engine.state.output[CommonKeys.LOSS].isfinite().all():
            return
        text = f"E{engine.state.epoch}: the training loss is not finite in iteration {engine.state.iteration}"
        if not self.keep_going:
            raise LunaError(f"{text}; lower optimizer#lr, or check the scans with 'luna-monai doctor'")
        self._warned = True
        logger.warning("%s", text)
