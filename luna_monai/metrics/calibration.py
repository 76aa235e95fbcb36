"""Calibrated probabilities, how reliable they are, and thresholds, from predictions on validation data.

A model trained on as many nodules as other candidates overestimates the probability of a nodule where one candidate in
400 is one: in log-odds by a constant, the intercept (Elkan 2001, "The foundations of cost-sensitive learning").
Overconfidence is a factor, the temperature (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Both are fitted on
validation data; neither changes the order of the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from luna_monai.errors import LunaError
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN

_FloatArray = NDArray[np.float64]

# Softmax in float32 saturates at 1 - 6e-8: closer to 1, the logit cannot be recovered from the probability.
_PROBABILITY_MARGIN = 2.0**-25
_SLOPES = (0.05, 20.0)
#: Wanted sensitivities, for which there are thresholds.
SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Calibration:
    """A map from a model's log-odds to calibrated probabilities: ``sigmoid(log_odds / temperature + intercept)``.

    Attributes:
        temperature: above 1 where the model is overconfident.
        intercept: added to the log-odds; negative where nodules are rarer than in training.
        prevalence: share of nodules among the candidates on which it was fitted.
    """

    temperature: float = 1.0
    intercept: float = 0.0
    prevalence: float | None = None

    def apply(self, log_odds: ArrayLike) -> _FloatArray:
        """Turn log-odds of any shape into calibrated probabilities of a nodule."""
        return np.asarray(expit(np.asarray(log_odds, dtype=float) / self.temperature + self.intercept))


def log_odds_of_logits(logits: ArrayLike) -> _FloatArray:
    """Turn a model's logits (..., 2), of which class 1 is the nodule, into the log-odds of a nodule (...)."""
    return np.asarray(np.diff(np.asarray(logits, dtype=float))[..., 0])


def log_odds_of_probability(probability: ArrayLike) -> _FloatArray:
    """Turn probabilities of a nodule into log-odds within -17.3 and 17.3, the range that float32 can resolve.

    Raises:
        LunaError: when a value is undefined or outside 0..1.
    """
    values = np.asarray(probability, dtype=float)
    if (wrong := ~((values >= 0) & (values <= 1))).any():
        raise LunaError(f"a probability must be between 0 and 1, found {values[wrong].flat[0]}")
    return np.asarray(logit(np.clip(values, _PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)))


def fit_calibration(log_odds: ArrayLike, is_nodule: ArrayLike) -> Calibration:
    """Fit temperature and intercept by maximum likelihood on validation data.

    Args:
        log_odds: of each candidate, shape (n,).
        is_nodule: its class, 0 or 1, shape (n,).

    Returns:
        The calibration, its temperature within 0.05 to 20: where the classes are perfectly separated the best fit is
        infinitely sharp.

    Raises:
        LunaError: when only one class is present.
    """
    # Prediction only applies a calibration: scikit-learn takes a second to import.
    from scipy.optimize import brentq
    from sklearn.linear_model import LogisticRegression

    log_odds, target = np.asarray(log_odds, dtype=float), np.asarray(is_nodule, dtype=bool)
    if target.all() or not target.any():
        raise LunaError("a calibration needs candidates of both classes, found one class only")
    # So weak a penalty keeps the fit finite where the classes are separated, and changes no digit where they are not.
    regression = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(log_odds[:, None], target)
    slope, prevalence = float(np.clip(regression.coef_[0, 0], *_SLOPES)), float(target.mean())
    # The best intercept makes the mean probability the prevalence; the regression's own is not that of a clipped slope.
    scores, center = slope * log_odds, logit(prevalence)
    bracket = (center - scores.max() - 1, center - scores.min() + 1)
    intercept = brentq(lambda value: expit(scores + value).mean() - prevalence, *bracket)
    return Calibration(1 / slope, float(intercept), prevalence)


def cross_fit_calibration(log_odds: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike) -> tuple[_FloatArray, int]:
    """Calibrate each scan by a fit on other scans, as new scans will be: in 5 folds, or as many as scans allow.

    Args:
        log_odds: of each candidate, shape (n,).
        is_nodule: its class, 0 or 1, shape (n,).
        seriesuid: its scan, shape (n,).

    Returns:
        The calibrated probabilities, shape (n,), and the number of folds.

    Raises:
        LunaError: as :func:`fit_calibration`, and when only one scan has a nodule, or only one has anything else.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    log_odds, target = np.asarray(log_odds, dtype=float), np.asarray(is_nodule, dtype=bool)
    scan = np.asarray(seriesuid)
    folds = min(5, len(np.unique(scan[target])), len(np.unique(scan[~target])))
    if folds < 2:
        raise LunaError("a cross-fitted calibration needs two scans with nodules")
    probability = np.empty(len(log_odds))
    for others, held_out in StratifiedGroupKFold(folds).split(log_odds, target, scan):
        probability[held_out] = fit_calibration(log_odds[others], target[others]).apply(log_odds[held_out])
    return probability, folds


def reliability(probability: ArrayLike, is_nodule: ArrayLike, *, bins: int = 10) -> dict[str, Any]:
    """Compare predicted probabilities with the observed share of nodules, in bins of equal width.

    Args:
        probability: of a nodule, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        bins: number of bins.

    Returns:
        For JSON, and for each bin that is not empty a list: ``count`` (of candidates), ``mean_probability``
        (predicted) and ``positive_share`` (observed share of nodules). Over all: ``expected_calibration_error`` (mean
        of the differences of these two, weighted by ``count``) and ``brier_score`` (mean squared difference of
        probability and class).
    """
    values = pd.DataFrame(
        {"mean_probability": np.asarray(probability, float), "positive_share": np.asarray(is_nodule, float)}
    )
    predicted, observed = values["mean_probability"], values["positive_share"]
    groups = values.groupby(np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], predicted))
    means, count = groups.mean(), groups.size()
    differences = (means["positive_share"] - means["mean_probability"]).abs()
    return {
        "count": count.tolist(),
        **{str(name): values.tolist() for name, values in means.items()},
        "expected_calibration_error": float(np.average(differences, weights=count)),
        "brier_score": float(((predicted - observed) ** 2).mean()),
    }


def calibration_summary(probability: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike) -> dict[str, Any]:
    """Fit a calibration and find thresholds on validation data, and measure the calibration by cross-fitting.

    The calibration and the thresholds are those of all scans; the reliability of calibrated probabilities is measured
    with each scan calibrated by a fit on others, see :func:`cross_fit_calibration`.

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
    target = np.asarray(is_nodule, dtype=bool)
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
    # With a threshold below 0, every candidate is positive on any scale.
    on_calibrated_scale = calibration.apply(log_odds_of_probability(points["threshold"].clip(0)))
    points["calibrated_threshold"] = np.where(points["threshold"] < 0, points["threshold"], on_calibrated_scale)
    return {
        "fitted_on": {"scans": scans, "candidates": len(target), "nodule_candidates": int(target.sum())},
        "calibration": dict(vars(calibration)),
        "reliability": {"raw": reliability(probability, target), "calibrated": calibrated, "folds": folds},
        "thresholds": {
            kind: rows.drop(columns="kind").to_dict("records") for kind, rows in points.groupby("kind", sort=False)
        },
    }


def operating_points(probability: ArrayLike, is_nodule: ArrayLike, scans: int) -> pd.DataFrame:
    """Find the highest threshold for each sensitivity, and the lowest that keeps to each rate of false positives.

    Args:
        probability: of a nodule, from 0 to 1, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,); both occur.
        scans: number of scans that the candidates come from.

    Returns:
        A row for each of ``SENSITIVITIES`` and of ``FALSE_POSITIVES_PER_SCAN``: ``kind`` (``sensitivity`` or
        ``false_positives_per_scan``) and ``wanted``; ``threshold``, strictly above which a candidate is called a
        nodule, as in the book; and ``sensitivity``, ``false_positives_per_scan`` and ``precision`` (NaN where no
        candidate is called) of these candidates. A threshold lies in the middle between two probabilities that occur,
        so that rounding elsewhere changes nothing; it is below 0 where even a probability of 0 must be called.
    """
    from sklearn.metrics import roc_curve  # prediction imports this module, and has no use for scikit-learn

    values, target = np.asarray(probability, dtype=float), np.asarray(is_nodule, dtype=bool)
    false_share, sensitivity, upper = roc_curve(target, values, drop_intermediate=False)
    true, false = np.rint(sensitivity * target.sum()), np.rint(false_share * (~target).sum())
    # Row k calls the k highest of the different probabilities; the outer neighbors are 1 and 0, or below 0.
    upper[0] = 1.0
    lower = np.append(upper[1:], 0.0 if upper[-1] > 0 else -1.0)
    middle = (lower + upper) / 2
    table = pd.DataFrame(
        {
            "threshold": np.where(middle < upper, middle, lower),  # neighboring floating-point numbers have no middle
            "sensitivity": sensitivity,
            "false_positives_per_scan": false / scans,
            "precision": pd.Series(true) / pd.Series(true + false),
        }
    )
    # The small number keeps 0.9 of 10 nodules from becoming 10 of them by rounding.
    rows = [int(np.argmax(sensitivity >= wanted - 1e-9)) for wanted in SENSITIVITIES]
    rows += (np.searchsorted(false, np.multiply(FALSE_POSITIVES_PER_SCAN, scans) + 1e-9, side="right") - 1).tolist()
    kinds = ["sensitivity"] * len(SENSITIVITIES) + ["false_positives_per_scan"] * len(FALSE_POSITIVES_PER_SCAN)
    return table.iloc[rows].assign(kind=kinds, wanted=[*SENSITIVITIES, *FALSE_POSITIVES_PER_SCAN])
