"""What a model's probabilities are worth on validation data: calibration, and thresholds for what a reader wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import (
    Calibration,
    cross_fit_calibration,
    fit_calibration,
    log_odds_of_probability,
    reliability,
)
from luna_monai.metrics.operating_points import OperatingPoint, point_for_false_positives, point_for_sensitivity

#: Shares of the nodule candidates that a reader may want to be shown.
SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)
#: False positives per scan that a reader may bear.
FALSE_POSITIVES_PER_SCAN = (0.5, 1.0, 2.0, 4.0, 8.0)


def calibration_summary(
    probability: ArrayLike,
    is_nodule: ArrayLike,
    seriesuid: ArrayLike,
    *,
    sensitivities: Sequence[float] = SENSITIVITIES,
    false_positives_per_scan: Sequence[float] = FALSE_POSITIVES_PER_SCAN,
) -> dict[str, Any]:
    """Fit a calibration and find thresholds on validation data, and judge the calibration by cross-fitting.

    The calibration and the thresholds are those of all scans; how reliable calibrated probabilities are is measured
    with each scan calibrated by a fit on others, see :func:`~luna_monai.metrics.calibration.cross_fit_calibration`.

    All counts are of candidates: two candidates on one nodule count as two. Thresholds are for the model's own
    probabilities; ``calibrated_threshold`` is the same place on the calibrated scale.

    Args:
        probability: of a nodule, as the model gave it, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        seriesuid: the scan of each candidate, shape (n,).
        sensitivities: shares of the nodules to find thresholds for.
        false_positives_per_scan: rates to find thresholds for.

    Returns:
        What JSON can hold: ``fitted_on`` (the data in numbers), ``calibration`` (``temperature``; ``shift``, the prior
        correction; ``nodule_share``, for which it holds), ``reliability`` (``raw``, ``calibrated`` and ``folds``, the
        number of parts in the cross-fit; the latter two None where only one scan has nodules) and ``thresholds``
        (``sensitivity`` and ``false_positives_per_scan``, a list each).

    Raises:
        LunaError: when a class is missing, a probability is not between 0 and 1, or a wanted value is impossible.
    """
    probability = np.asarray(probability, dtype=float)
    target = np.asarray(is_nodule)
    log_odds = log_odds_of_probability(probability)
    calibration = fit_calibration(log_odds, target)
    scans = len(np.unique(np.asarray(seriesuid)))
    calibrated, folds = _judged(log_odds, target, seriesuid)

    def described(wanted: float, point: OperatingPoint) -> dict[str, float | None]:
        calibrated = {"calibrated_threshold": _calibrated(calibration, point.threshold)}
        return {"wanted": wanted, **calibrated, **point.to_dict()}

    return {
        "fitted_on": {"scans": scans, "candidates": len(target), "nodule_candidates": int((target == 1).sum())},
        "calibration": calibration.to_dict(),
        "reliability": {
            "raw": reliability(probability, target).to_dict(),
            "calibrated": calibrated,
            "folds": folds,
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


def _judged(
    log_odds: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike
) -> tuple[dict[str, Any] | None, int | None]:
    try:
        probability, folds = cross_fit_calibration(log_odds, is_nodule, seriesuid)
    except LunaError:
        return None, None
    return reliability(probability, is_nodule).to_dict(), folds


def _calibrated(calibration: Calibration, threshold: float) -> float:
    # A threshold below 0 calls everything, whatever the scale.
    return threshold if threshold < 0 else float(calibration.apply(log_odds_of_probability(threshold)))
