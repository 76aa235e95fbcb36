"""What an evaluation of given weights leaves behind."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.files import sha256_of, write_json, write_submission
from luna_monai.metrics.calibration import calibration_summary
from luna_monai.training.run_folder import write_predictions

logger = logging.getLogger(__name__)

ERROR = "expected_calibration_error"


def evaluation_dir(weights: str | Path) -> str:
    """Name the folder for the evaluation of weights: another one for each content of the file."""
    return f"data-unversioned/evaluation/{Path(weights).stem}-{sha256_of(weights)[:8]}"


@dataclass(eq=False)
class EvaluationFolder:
    """Writes what an evaluator found, every file whole or not at all.

    - ``predictions.csv``: what the model said about each candidate;
    - ``submission.csv``: the same in the format of LUNA16, for ``luna-monai froc``;
    - ``metrics.json``: the metrics, and where the weights and candidates come from;
    - ``calibration.json``: temperature, intercept, reliability and thresholds, see
      :func:`~luna_monai.metrics.calibration.calibration_summary`.

    List it last among the ``val_handlers``. Only the first process of several writes.

    Args:
        output_dir: the folder.
        candidates: the candidates that are evaluated, indexed by row.
        source: what to note in ``metrics.json``, such as the file of the weights.
        calibrate: fit calibration and thresholds; the book keeps its probabilities and its threshold of 0.5.
    """

    output_dir: str | Path
    candidates: pd.DataFrame
    source: Mapping[str, Any]
    calibrate: bool = True

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        folder, records = Path(self.output_dir), engine.state.records
        write_predictions(folder / "predictions.csv", records, self.candidates)
        in_order = records[["row", "probability"]].sort_values("row", kind="stable")
        write_submission(folder / "submission.csv", in_order.join(self.candidates, on="row"))
        seriesuid = records["row"].map(self.candidates["seriesuid"])
        counts = {"scans": seriesuid.nunique(), "candidates": len(records)}
        write_json(folder / "metrics.json", {**self.source, **counts, "metrics": engine.state.metrics})
        (folder / "calibration.json").unlink(missing_ok=True)  # of an earlier evaluation
        if self.calibrate:
            try:
                content = calibration_summary(records["probability"], records["class"], seriesuid)
            except LunaError as error:
                logger.warning("No calibration and no thresholds: %s", error)
            else:
                write_json(folder / "calibration.json", content)
                _log_calibration(content)
        logger.info("Results: %s", folder)


def _log_calibration(content: Mapping[str, Any]) -> None:
    fit, (raw, calibrated) = content["calibration"], (content["reliability"][name] for name in ("raw", "calibrated"))
    after = "not measured: one scan has nodules" if calibrated is None else f"{calibrated[ERROR]:.4f} on other scans"
    text = "Calibration: temperature %.3f, intercept %+.3f in log-odds; expected calibration error %.4f, then %s"
    logger.info(text, fit["temperature"], fit["intercept"], raw[ERROR], after)
    text = "For %g %s: threshold %.4f, sensitivity %.3f, %.2f false positives (candidates of class 0) per scan"
    for name, points in content["thresholds"].items():
        for point in points:
            values = (point[key] for key in ("threshold", "sensitivity", "false_positives_per_scan"))
            logger.info(text, point["wanted"], name.replace("_", " "), *values)
