"""What a model's probabilities are worth on validation data: calibration, and thresholds for what a reader wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from luna_monai.metrics.calibration import Calibration, fit_calibration, log_odds_of_probability, reliability
from luna_monai.metrics.operating_points import OperatingPoint, point_for_false_positives, point_for_sensitivity

#: Shares of the nodule candidates that a reader may want to be shown.
SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)
#: False positives per scan that a reader may bear.
FALSE_POSITIVES_PER_SCAN = (0.5, 1.0, 2.0, 4.0, 8.0)


def calibration_summary(
    probability: ArrayLike,
    is_nodule: ArrayLike,
    scans: int,
    *,
    sensitivities: Sequence[float] = SENSITIVITIES,
    false_positives_per_scan: Sequence[float] = FALSE_POSITIVES_PER_SCAN,
) -> dict[str, Any]:
    """Fit a calibration and find thresholds, on the same validation data.

    All counts are of candidates: two candidates on one nodule count as two. Thresholds are for the model's own
    probabilities; ``calibrated_threshold`` is the same place on the calibrated scale.

    Args:
        probability: of a nodule, as the model gave it, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        scans: number of scans that the candidates come from.
        sensitivities: shares of the nodules to find thresholds for.
        false_positives_per_scan: rates to find thresholds for.

    Returns:
        What JSON can hold: ``fitted_on`` (the data in numbers), ``calibration`` (``temperature``; ``shift``, the prior
        correction; ``nodule_share``, for which it holds), ``reliability`` (``raw`` and ``calibrated``) and
        ``thresholds`` (``sensitivity`` and ``false_positives_per_scan``, a list each).

    Raises:
        LunaError: when a class is missing, a probability is not between 0 and 1, or a wanted value is impossible.
    """
    probability = np.asarray(probability, dtype=float)
    target = np.asarray(is_nodule)
    log_odds = log_odds_of_probability(probability)
    calibration = fit_calibration(log_odds, target)

    def described(wanted: float, point: OperatingPoint) -> dict[str, float | None]:
        calibrated = {"calibrated_threshold": _calibrated(calibration, point.threshold)}
        return {"wanted": wanted, **calibrated, **point.to_dict()}

    return {
        "fitted_on": {"scans": scans, "candidates": len(target), "nodule_candidates": int((target == 1).sum())},
        "calibration": calibration.to_dict(),
        "reliability": {
            "raw": reliability(probability, target).to_dict(),
            "calibrated": reliability(calibration.apply(log_odds), target).to_dict(),
        },
        "thresholds": {
            "sensitivity": [
                described(wanted, point_for_sensitivity(probability, target, scans, wanted)) for wanted in sensitivities
            ],
            "false_positives_per_scan": [
                described(wanted, point_for_false_positives(probability, target, scans, wanted))
                for wanted in false_positives_per_scan
            ],
        },
    }


def _calibrated(calibration: Calibration, threshold: float) -> float:
    # A threshold below 0 calls everything, whatever the scale.
    return threshold if threshold < 0 else float(calibration.apply(log_odds_of_probability(threshold)))
