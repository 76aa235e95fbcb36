"""The files that an evaluation of given weights writes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.errors import LunaError
from luna_monai.files import check_file, sha256_of, write_json, write_submission
from luna_monai.metrics.calibration import calibration_summary
from luna_monai.training.run_folder import write_predictions

logger = logging.getLogger(__name__)

_ECE = "expected_calibration_error"


def evaluation_dir(weights: str | Path) -> str:
    """Make the name of the default output folder for an evaluation.

    Args:
        weights: file of weights.

    Returns:
        ``data-unversioned/evaluation/NAME-HASH``, so that weights with different content use different folders.
    """
    return f"data-unversioned/evaluation/{Path(weights).stem}-{sha256_of(weights)[:8]}"


@dataclass(eq=False)
class EvaluationFolder:
    """Writes the results of an evaluator. Each file is written atomically.

    - ``predictions.csv``: probability and loss of each candidate;
    - ``submission.csv``: the probabilities in LUNA16's submission format, for ``luna-monai froc``;
    - ``metrics.json``: the metrics, the number of scans and candidates, and ``source``;
    - ``calibration.json``: temperature, intercept, reliability and thresholds, see
      :func:`~luna_monai.metrics.calibration.calibration_summary`.

    Make it the last of the ``val_handlers``. With several processes, only the first one writes.

    Args:
        output_dir: folder of the results.
        candidates: the candidates that are evaluated, indexed by row.
        source: more entries of ``metrics.json``, such as the file of the weights.
        book: fit no calibration and thresholds; the book's threshold is 0.5.
    """

    output_dir: str | Path
    candidates: pd.DataFrame
    source: Mapping[str, Any]
    book: bool = False

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        if idist.get_rank() == 0:
            check_file(Path(self.output_dir) / "metrics.json", [".json"])
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
        if not self.book:
            try:
                content = calibration_summary(records["probability"], records["class"], seriesuid)
            except LunaError as error:
                logger.warning("No calibration and thresholds: %s", error)
            else:
                write_json(folder / "calibration.json", content)
                _log_calibration(content)
        logger.info("Results: %s", folder)


def _log_calibration(content: Mapping[str, Any]) -> None:
    fit, (raw, calibrated) = content["calibration"], (content["reliability"][name] for name in ("raw", "calibrated"))
    after = "unknown (nodules in one scan only)" if calibrated is None else f"{calibrated[_ECE]:.4f} (cross-fitted)"
    text = "Calibration: temperature %.3f, intercept %+.3f in log-odds; calibration error (ECE) %.4f before, %s after"
    logger.info(text, fit["temperature"], fit["intercept"], raw[_ECE], after)
    text = "For %g %s: threshold %.4f, sensitivity %.3f, %.2f false positives (candidates of class 0) per scan"
    for name, points in content["thresholds"].items():
        for point in points:
            values = (point[key] for key in ("threshold", "sensitivity", "false_positives_per_scan"))
            logger.info(text, point["wanted"], name.replace("_", " "), *values)
