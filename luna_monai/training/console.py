"""The book's lines about an epoch, and where the model failed worst."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.training.best_epoch import BestEpoch
from luna_monai.training.froc import FROC_METRICS

logger = logging.getLogger(__name__)


class ConsoleHandler:
    """Logs an epoch's metrics as the book does (chapter 11.6), with ``n/a`` for what is undefined.

    Args:
        split: ``"trn"`` or ``"val"``.
        book: log the book's three lines only, not precision, recall, F1 and the areas under curves.
    """

    def __init__(self, split: str, book: bool = False) -> None:
        self.split = split
        self.book = book

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            for line in epoch_lines(engine.state.epoch, self.split, engine.state.metrics, self.book):
                logger.info(line)


def epoch_lines(epoch: int, split: str, metrics: Mapping[str, float], book: bool = False) -> list[str]:
    """Describe an epoch.

    Args:
        epoch: its number.
        split: ``"trn"`` or ``"val"``.
        metrics: what :func:`~luna_monai.metrics.per_class.per_class_metrics` returned.
        book: the book's three lines only.

    Returns:
        Lines of text: all samples, negatives, positives, how good the ranking is, and LUNA16's score where
        :class:`~luna_monai.training.froc.FrocMetrics` has computed it.
    """

    def number(name: str, form: str, width: int) -> str:
        value = metrics[name]
        return "n/a".rjust(width) if math.isnan(value) else format(value, form)

    def start(suffix: str, group: str) -> str:
        loss, correct = number(f"loss/{group}", ".4f", 6), number(f"correct/{group}", "-5.1f", 5)
        return f"E{epoch} {split + suffix:8} {loss} loss, {correct}% correct"

    lines = [start("", "all") + ", "]
    for group in ("neg", "pos"):
        counts = f"({metrics[f'correct_count/{group}']} of {metrics[f'count/{group}']})"
        lines.append(f"{start(f'_{group}', group)} {counts}")
    if not book:
        shown = {
            "precision": "pr/precision",
            "recall": "pr/recall",
            "F1": "pr/f1_score",
            "ROC AUC": "roc_auc",
            "AP": "average_precision",
        }
        values = ", ".join(f"{number(name, '.4f', 6)} {title}" for title, name in shown.items())
        lines.append(f"E{epoch} {split:8} {values}")
        if "cpm" in metrics:
            sensitivities = " ".join(number(name, ".3f", 5) for name in FROC_METRICS[1:])
            lines.append(
                f"E{epoch} {split:8} {number('cpm', '.4f', 6)} CPM, sensitivity {sensitivities} "
                "at 1/8 1/4 1/2 1 2 4 8 false positives per scan"
            )
    return lines


class WorstCandidates:
    """Lists, at the end of a run, where the best epoch's validation was most wrong.

    Args:
        candidates: the candidate table, indexed by row: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS,
            mm), ``diameter_mm``.
        best_epoch: knows the best epoch and its records.
        count: how many false negatives, and how many false positives.
        threshold: a probability above it is a decision for class 1.
    """

    def __init__(
        self, candidates: pd.DataFrame, best_epoch: BestEpoch, count: int = 10, threshold: float = 0.5
    ) -> None:
        self.candidates = candidates
        self.best_epoch = best_epoch
        self.count = count
        self.threshold = threshold

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _log(self) -> None:
        records = self.best_epoch.records
        if records is None or idist.get_rank() != 0:
            return
        for is_nodule, title in ((1, "false negatives"), (0, "false positives")):
            wrong = (records["class"] == is_nodule) & ((records["probability"] > self.threshold) != bool(is_nodule))
            worst = records[wrong].sort_values("probability", ascending=bool(is_nodule), kind="stable")
            shown = worst.head(self.count)
            logger.info(
                "Validation of E%s, %s: %d of %d, %s",
                self.best_epoch.epoch,
                title,
                len(worst),
                (records["class"] == is_nodule).sum(),
                f"the worst {len(shown)}:" if len(shown) else "none to show",
            )
            for line in worst_lines(shown, self.candidates) if len(shown) else ():
                logger.info(line)


def worst_lines(records: pd.DataFrame, candidates: pd.DataFrame) -> list[str]:
    """Format records as a table.

    Args:
        records: ``row``, ``probability`` and ``loss``.
        candidates: the candidate table, indexed by row.

    Returns:
        A header line and a line for each record, with its place in world coordinates (LPS, mm).
    """
    places = candidates.loc[records["row"]].reset_index(drop=True)
    records = records.reset_index(drop=True)
    widest = max(places["seriesuid"].str.len().max(), len("series"))
    header = (
        f"{'series':{widest}} {'x mm':>8} {'y mm':>8} {'z mm':>8} {'diameter mm':>11} {'probability':>11} {'loss':>8}"
    )
    lines = [header]
    for place, record in zip(places.to_dict("records"), records.to_dict("records"), strict=True):
        position = " ".join(f"{place[axis]:8.1f}" for axis in ("coordX", "coordY", "coordZ"))
        lines.append(
            f"{place['seriesuid']:{widest}} {position} {place['diameter_mm']:11.1f} "
            f"{record['probability']:11.4f} {record['loss']:8.4f}"
        )
    return lines
