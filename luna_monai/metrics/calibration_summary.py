"""Calibration, its reliability, and thresholds, from predictions on validation data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import cross_fit_calibration, fit_calibration, log_odds_of_probability, reliability
from luna_monai.metrics.operating_points import operating_points


def calibration_summary(probability: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike) -> dict[str, Any]:
    """Fit a calibration and find thresholds on validation data, and measure the calibration by cross-fitting.

    The calibration and the thresholds are those of all scans; the reliability of calibrated probabilities is measured
    with each scan calibrated by a fit on others, see :func:`~luna_monai.metrics.calibration.cross_fit_calibration`.

    All counts are of candidates: two candidates on one nodule count as two. Thresholds are for the model's own
    probabilities; ``calibrated_threshold`` is the same place on the calibrated scale.

    Args:
        probability: of a nodule, as the model gave it, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        seriesuid: the scan of each candidate, shape (n,).

    Returns:
        Content for :func:`luna_monai.files.write_json`: ``fitted_on`` (the data in numbers), ``calibration``
        (``temperature``, ``intercept`` and ``prevalence``), ``reliability`` (``raw``, ``calibrated`` and ``folds``, the
        number of parts in the cross-fit; the latter two None where only one scan has nodules) and ``thresholds``
        (``sensitivity`` and ``false_positives_per_scan``, a list each).

    Raises:
        LunaError: when a class is missing, or a probability is not between 0 and 1.
    """
    target = np.asarray(is_nodule)
    log_odds = log_odds_of_probability(probability)
    calibration = fit_calibration(log_odds, target)
    scans = len(np.unique(np.asarray(seriesuid)))
    calibrated, folds = None, None
    try:
        cross_fitted, folds = cross_fit_calibration(log_odds, target, seriesuid)
        calibrated = reliability(cross_fitted, target)
    except LunaError:
        pass
    points = operating_points(probability, target, scans)
    # A threshold below 0 calls everything, whatever the scale.
    on_calibrated_scale = calibration.apply(log_odds_of_probability(points["threshold"].clip(0)))
    points["calibrated_threshold"] = np.where(points["threshold"] < 0, points["threshold"], on_calibrated_scale)
    return {
        "fitted_on": {"scans": scans, "candidates": len(target), "nodule_candidates": int((target == 1).sum())},
        "calibration": calibration.to_dict(),
        "reliability": {"raw": reliability(probability, target), "calibrated": calibrated, "folds": folds},
        "thresholds": {
            kind: rows.drop(columns="kind").to_dict("records") for kind, rows in points.groupby("kind", sort=False)
        },
    }
