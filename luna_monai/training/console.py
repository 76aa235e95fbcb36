"""The book's lines about an epoch, and the last lines of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.training.metrics import FROC_METRICS
from luna_monai.training.run_state import RunState

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
        metrics: metrics of :class:`~luna_monai.training.metrics.CandidateMetrics`, and of
            :class:`~luna_monai.training.metrics.FrocMetrics` where there are any.
        book: the book's three lines only.

    Returns:
        Lines of text: all samples, negatives, positives, ranking metrics, and LUNA16's score.
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
        if FROC_METRICS[-1] in metrics:
            sensitivities = " ".join(number(name, ".3f", 5) for name in FROC_METRICS[1:])
            lines.append(
                f"E{epoch} {split:8} {number('cpm', '.4f', 6)} CPM, sensitivity {sensitivities} "
                "at 1/8 1/4 1/2 1 2 4 8 false positives per scan"
            )
    return lines


class RunSummary:
    """Logs, at the end of a run, the best epoch's worst errors and results in validation, and where everything is.

    List it last among the ``train_handlers``.

    Args:
        candidates: the validation part of the candidate table, indexed by row: ``seriesuid``, ``coordX``, ``coordY``,
            ``coordZ`` (world, LPS, mm), ``diameter_mm``.
        run_state: knows the folder, the best epoch and its records.
        count: number of false negatives, and of false positives, to list.
        threshold: a probability above it is a decision for class 1.
    """

    def __init__(self, candidates: pd.DataFrame, run_state: RunState, count: int = 10, threshold: float = 0.5) -> None:
        self.candidates = candidates
        self.run_state = run_state
        self.count = count
        self.threshold = threshold

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        state, records = self.run_state, self.run_state.best_records
        if records is None:
            logger.info("No best epoch: the validation metrics are undefined")
        else:
            for is_nodule, title in ((True, "false negatives"), (False, "false positives")):
                self._log_worst(records, is_nodule, title)
            self._log_results(records, engine.state.epoch)
        places = {
            "Weights:     ": state.output_dir / "model.pt",
            "Metrics:     ": state.output_dir / "metrics.csv",
            "Predictions: ": state.output_dir / "predictions" / "val.csv",
            "Plots:       tensorboard --logdir ": state.output_dir / "runs",
        }
        for text, path in places.items():
            if path.exists():
                logger.info("%s%s", text, path)

    def _log_results(self, records: pd.DataFrame, epochs: int) -> None:
        called, is_nodule = records["probability"] > self.threshold, records["class"] == 1
        scans = self.candidates["seriesuid"].nunique()
        logger.info(
            "Best epoch: %s of %d, %.1f%% of the validation candidates correct",
            self.run_state.best_epoch, epochs, 100 * (called == is_nodule).mean(),
        )  # fmt: skip
        logger.info(
            "  it finds %d of %d nodule candidates (%s) at %.1f false positives per scan in %d scans; ROC AUC %.4f",
            (called & is_nodule).sum(),
            is_nodule.sum(),
            f"{100 * called[is_nodule].mean():.0f}%" if is_nodule.any() else "n/a",
            (called & ~is_nodule).sum() / scans,
            scans,
            self.run_state.best_metrics.get("roc_auc", math.nan),
        )

    def _log_worst(self, records: pd.DataFrame, is_nodule: bool, title: str) -> None:
        of_class = records[(records["class"] == 1) == is_nodule]
        wrong = of_class[(of_class["probability"] > self.threshold) != is_nodule]
        shown = wrong.sort_values("probability", ascending=is_nodule, kind="stable").head(self.count)
        logger.info(
            "Validation of E%s, %s: %d of %d, %s", self.run_state.best_epoch, title, len(wrong), len(of_class),
            f"the worst {len(shown)}:" if len(shown) else "none to show",
        )  # fmt: skip
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
    table = records.join(candidates.drop(columns="class", errors="ignore"), on="row")
    widest = max(table["seriesuid"].str.len().max(), len("series"))
    header = f"{'x mm':>8} {'y mm':>8} {'z mm':>8} {'diameter mm':>11} {'probability':>11} {'loss':>8}"
    return [f"{'series':{widest}} {header}"] + [
        f"{row.seriesuid:{widest}} {row.coordX:8.1f} {row.coordY:8.1f} {row.coordZ:8.1f} {row.diameter_mm:11.1f} "
        f"{row.probability:11.4f} {row.loss:8.4f}"
        for row in table.itertuples()
    ]
