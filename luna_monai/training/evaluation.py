"""What an evaluation of given weights leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.files import write_json, write_submission
from luna_monai.metrics.calibration_summary import calibration_summary
from luna_monai.training.run_folder import write_predictions

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
SUBMISSION = "submission.csv"
METRICS = "metrics.json"
CALIBRATION = "calibration.json"


class EvaluationFolder:
    """Writes what an evaluator found, every file whole or not at all.

    - ``predictions.csv``: what the model said about each candidate;
    - ``submission.csv``: the same as LUNA16 wants it, for ``luna-monai froc``;
    - ``metrics.json``: the metrics, and where the weights and candidates come from;
    - ``calibration.json``: temperature, intercept, reliability and thresholds, see
      :func:`~luna_monai.metrics.calibration_summary.calibration_summary`.

    List it last among the ``val_handlers``. Only the first process of several writes.

    Args:
        output_dir: the folder.
        candidates: the candidates that are evaluated, indexed by row.
        source: what to note in ``metrics.json``, such as the file of the weights.
        calibrate: fit calibration and thresholds; the book keeps its probabilities and its threshold of 0.5.
    """

    def __init__(
        self,
        output_dir: str | Path,
        candidates: pd.DataFrame,
        source: Mapping[str, Any] | None = None,
        calibrate: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.candidates = candidates
        self.source = dict(source or {})
        self.calibrate = calibrate

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        if idist.get_rank() != 0:
            return
        records = engine.state.records
        write_predictions(self.output_dir / PREDICTIONS, records, self.candidates)
        in_order = records[["row", "probability"]].sort_values("row", kind="stable")
        write_submission(self.output_dir / SUBMISSION, in_order.join(self.candidates, on="row"))
        seriesuid = records["row"].map(self.candidates["seriesuid"])
        scans = seriesuid.nunique()
        content = {**self.source, "scans": scans, "candidates": len(records), "metrics": engine.state.metrics}
        write_json(self.output_dir / METRICS, content)
        (self.output_dir / CALIBRATION).unlink(missing_ok=True)  # of an earlier evaluation
        if self.calibrate:
            try:
                content = calibration_summary(records["probability"], records["class"], seriesuid)
            except LunaError as error:
                logger.warning("No calibration and no thresholds: %s", error)
            else:
                write_json(self.output_dir / CALIBRATION, content)
                for line in threshold_lines(content):
                    logger.info(line)
        logger.info("Results: %s", self.output_dir)


def threshold_lines(content: Mapping[str, Any]) -> list[str]:
    """Say in words what :func:`~luna_monai.metrics.calibration_summary.calibration_summary` found.

    Args:
        content: what it returned.

    Returns:
        Lines of text.
    """
    calibration = content["calibration"]
    raw, calibrated = content["reliability"]["raw"], content["reliability"]["calibrated"]
    then = (
        "not measured, because only one scan has nodules"
        if calibrated is None
        else f"{calibrated['expected_calibration_error']:.4f} on scans that were not fitted on"
    )
    lines = [
        f"Calibration: temperature {calibration['temperature']:.3f}, intercept {calibration['intercept']:+.3f} in "
        f"log-odds; expected calibration error {raw['expected_calibration_error']:.4f}, then {then}"
    ]
    for name, points in content["thresholds"].items():
        lines.extend(
            f"For {point['wanted']:g} {name.replace('_', ' ')}: threshold {point['threshold']:.4f}, sensitivity "
            f"{point['sensitivity']:.3f}, {point['false_positives_per_scan']:.2f} false positives per scan"
            for point in points
        )
    return lines
