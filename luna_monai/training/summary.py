"""The last lines of a run: what was learnt, and where to look."""

from __future__ import annotations

import logging
from pathlib import Path

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.training.best_epoch import BestEpoch

logger = logging.getLogger(__name__)


class RunSummary:
    """Logs, at the end of a run, what the best model does on the validation scans, and where everything is.

    List it last among the ``train_handlers``.

    Args:
        output_dir: folder of the run.
        candidates: the validation part of the candidate table, indexed by row.
        best_epoch: knows the best epoch and its records.
        threshold: a probability above it is a decision for class 1.
    """

    def __init__(
        self, output_dir: str | Path, candidates: pd.DataFrame, best_epoch: BestEpoch, threshold: float = 0.5
    ) -> None:
        self.output_dir = Path(output_dir)
        self.candidates = candidates
        self.best_epoch = best_epoch
        self.threshold = threshold

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._log)

    def _log(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        records = self.best_epoch.records
        if records is None:
            logger.info("No epoch was better than chance can tell: validation has no defined metric")
        else:
            found = records["probability"] > self.threshold
            is_nodule = records["class"] == 1
            scans = self.candidates["seriesuid"].nunique()
            logger.info(
                "Best epoch: %d of %d, %.1f%% of the validation candidates correct",
                self.best_epoch.epoch,
                engine.state.epoch,
                100 * (found == is_nodule).mean(),
            )
            logger.info(
                "  it finds %d of %d nodule candidates (%s) at %.1f false positives per scan in %d scans; ROC AUC %.4f",
                (found & is_nodule).sum(),
                is_nodule.sum(),
                f"{100 * found[is_nodule].mean():.0f}%" if is_nodule.any() else "n/a",
                (found & ~is_nodule).sum() / scans,
                scans,
                self.best_epoch.metrics.get("roc_auc", float("nan")),
            )
        logger.info("Weights:     %s", self.output_dir / "model.pt")
        logger.info("Metrics:     %s", self.output_dir / "metrics.csv")
        logger.info("Predictions: %s", self.output_dir / "predictions" / "val.csv")
        logger.info("Plots:       tensorboard --logdir %s", self.output_dir / "runs")
