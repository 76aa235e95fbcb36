"""Calibrated probabilities, their reliability, and thresholds, from predictions on validation data.

A model that is trained on equal numbers of nodules and other candidates overestimates the probability of a nodule if
only one candidate in 400 is one. Its log-odds are too high by a constant, which the intercept corrects (Elkan 2001,
"The foundations of cost-sensitive learning"). The log-odds of an overconfident model are too large by a factor, which
the temperature corrects (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Both are fitted on validation data, and
neither changes the order of the candidates.
"""

from contextlib import suppress
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
#: Sensitivities for which thresholds are determined.
SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Calibration:
    """A map from a model's log-odds to calibrated probabilities: ``sigmoid(log_odds / temperature + intercept)``.

    Attributes:
        temperature: divides the log-odds; above 1 if the model is overconfident.
        intercept: added to the log-odds; negative if nodules are rarer than in training.
        prevalence: fraction of nodules among the candidates of the fit.
    """

    temperature: float = 1.0
    intercept: float = 0.0
    prevalence: float | None = None

    def apply(self, log_odds: ArrayLike) -> _FloatArray:
        """Convert log-odds of any shape to calibrated probabilities of a nodule."""
        return np.asarray(expit(np.asarray(log_odds, dtype=float) / self.temperature + self.intercept))


def log_odds_of_logits(logits: ArrayLike) -> _FloatArray:
    """Convert a model's logits (..., 2), where class 1 is the nodule, to the log-odds of a nodule (...)."""
    return np.asarray(np.diff(np.asarray(logits, dtype=float))[..., 0])


def log_odds_of_probability(probability: ArrayLike) -> _FloatArray:
    """Convert probabilities of a nodule to log-odds between -17.3 and 17.3, the range that float32 can resolve.

    Raises:
        LunaError: when a value is NaN or outside [0, 1].
    """
    values = np.asarray(probability, dtype=float)
    if (wrong := ~((values >= 0) & (values <= 1))).any():
        raise LunaError(f"a probability must be between 0 and 1, found {values[wrong].flat[0]}")
    return np.asarray(logit(np.clip(values, _PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)))


def fit_calibration(log_odds: ArrayLike, is_nodule: ArrayLike) -> Calibration:
    """Fit temperature and intercept by maximum likelihood on validation data.

    Args:
        log_odds: log-odds of each candidate, shape (n,).
        is_nodule: class of each candidate, 0 or 1, shape (n,).

    Returns:
        The calibration. Its temperature is limited to the range from 0.05 to 20, because the best temperature for
        perfectly separated classes is 0.

    Raises:
        LunaError: when only one class is present.
    """
    # Imported here, because scikit-learn takes a second to import, and prediction only applies a calibration.
    from scipy.optimize import brentq
    from sklearn.linear_model import LogisticRegression

    log_odds, target = np.asarray(log_odds, dtype=float), np.asarray(is_nodule, dtype=bool)
    if target.all() or not target.any():
        raise LunaError("a calibration needs candidates of both classes, found one class only")
    # This weak penalty keeps the fit finite if the classes are separated, and has no effect otherwise.
    regression = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(log_odds[:, None], target)
    slope, prevalence = float(np.clip(regression.coef_[0, 0], *_SLOPES)), float(target.mean())
    # With the best intercept, the mean probability equals the prevalence. That of the regression ignores the clipping.
    scores, center = slope * log_odds, logit(prevalence)
    bracket = (center - scores.max() - 1, center - scores.min() + 1)
    intercept = brentq(lambda value: expit(scores + value).mean() - prevalence, *bracket)
    return Calibration(1 / slope, float(intercept), prevalence)


def cross_fit_calibration(log_odds: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike) -> tuple[_FloatArray, int]:
    """Calibrate each scan with a fit on other scans, as for new scans, in 5 folds or fewer if there are few scans.

    Args:
        log_odds: log-odds of each candidate, shape (n,).
        is_nodule: class of each candidate, 0 or 1, shape (n,).
        seriesuid: scan of each candidate, shape (n,).

    Returns:
        The calibrated probabilities, shape (n,), and the number of folds.

    Raises:
        LunaError: as in :func:`fit_calibration`, and when fewer than two scans have nodules, or other candidates.
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
    """Compare predicted probabilities with the observed fraction of nodules, in bins of equal width.

    Args:
        probability: predicted probability of a nodule, shape (n,).
        is_nodule: class of each candidate, 0 or 1, shape (n,).
        bins: number of bins.

    Returns:
        Content for JSON. Lists with a value per bin that is not empty: ``count`` (of candidates), ``mean_probability``
        (predicted) and ``positive_share`` (observed fraction of nodules). Values over all candidates:
        ``expected_calibration_error`` (mean absolute difference of the two, weighted by ``count``) and ``brier_score``
        (mean squared difference of probability and class).
    """
    # Not scikit-learn's calibration_curve, which does not return the number of candidates in each bin.
    predicted, observed = np.asarray(probability, dtype=float), np.asarray(is_nodule, dtype=float)
    values = pd.DataFrame({"mean_probability": predicted, "positive_share": observed})
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

    The calibration and the thresholds are fitted on all scans. The reliability of calibrated probabilities is measured
    with each scan calibrated by a fit on other scans, see :func:`cross_fit_calibration`.

    All counts are numbers of candidates: two candidates on one nodule count as two. Thresholds apply to the model's
    probabilities; ``calibrated_threshold`` is the corresponding calibrated probability.

    Args:
        probability: the model's probability of a nodule, shape (n,).
        is_nodule: class of each candidate, 0 or 1, shape (n,).
        seriesuid: scan of each candidate, shape (n,).

    Returns:
        Content for :func:`luna_monai.files.write_json`: ``fitted_on`` (numbers of scans and candidates),
        ``calibration`` (``temperature``, ``intercept`` and ``prevalence``), ``reliability`` (``raw``, ``calibrated``
        and ``folds``, the number of folds of the cross-fit; the last two are None if only one scan has nodules) and
        ``thresholds`` (the lists ``sensitivity`` and ``false_positives_per_scan``).

    Raises:
        LunaError: when a class is missing, or a probability is not between 0 and 1.
    """
    target = np.asarray(is_nodule, dtype=bool)
    log_odds = log_odds_of_probability(probability)
    calibration = fit_calibration(log_odds, target)
    scans = len(np.unique(np.asarray(seriesuid)))
    calibrated, folds = None, None
    with suppress(LunaError):
        cross_fitted, folds = cross_fit_calibration(log_odds, target, seriesuid)
        calibrated = reliability(cross_fitted, target)
    points = operating_points(probability, target, scans)
    # With a threshold below 0 every candidate is positive, with or without calibration.
    on_calibrated_scale = calibration.apply(log_odds_of_probability(points["threshold"].clip(0)))
    points["calibrated_threshold"] = np.where(points["threshold"] < 0, points["threshold"], on_calibrated_scale)
    by_kind = points.groupby("kind", sort=False)
    return {
        "fitted_on": {"scans": scans, "candidates": len(target), "nodule_candidates": int(target.sum())},
        "calibration": dict(vars(calibration)),
        "reliability": {"raw": reliability(probability, target), "calibrated": calibrated, "folds": folds},
        "thresholds": {kind: rows.drop(columns="kind").to_dict("records") for kind, rows in by_kind},
    }


def operating_points(probability: ArrayLike, is_nodule: ArrayLike, scans: int) -> pd.DataFrame:
    """Find the highest threshold for each sensitivity, and the lowest threshold for each false-positive rate.

    Args:
        probability: probability of a nodule, from 0 to 1, shape (n,).
        is_nodule: class of each candidate, 0 or 1, shape (n,); both classes must occur.
        scans: number of scans of the candidates.

    Returns:
        A row for each of ``SENSITIVITIES`` and of ``FALSE_POSITIVES_PER_SCAN``: ``kind`` (``sensitivity`` or
        ``false_positives_per_scan``) and ``wanted``, the value to reach; ``threshold``, and the resulting
        ``sensitivity``, ``false_positives_per_scan`` and ``precision`` (NaN without positive candidates). As in the
        book, a candidate is positive if its probability is strictly above the threshold. A threshold is the midpoint
        between two probabilities of candidates, so that rounding does not change the results. It is below 0 if
        candidates with a probability of 0 must be positive.
    """
    from sklearn.metrics import roc_curve  # prediction imports this module, and does not need scikit-learn

    values, target = np.asarray(probability, dtype=float), np.asarray(is_nodule, dtype=bool)
    false_share, sensitivity, upper = roc_curve(target, values, drop_intermediate=False)
    true, false = np.rint(sensitivity * target.sum()), np.rint(false_share * (~target).sum())
    # In row k, candidates with the k highest distinct probabilities are positive. Thresholds range from 1 to 0 or -1.
    upper[0] = 1.0
    lower = np.append(upper[1:], 0.0 if upper[-1] > 0 else -1.0)
    middle = (lower + upper) / 2
    columns = {
        "threshold": np.where(middle < upper, middle, lower),  # neighboring floating-point numbers have no midpoint
        "sensitivity": sensitivity,
        "false_positives_per_scan": false / scans,
        "precision": pd.Series(true) / pd.Series(true + false),
    }
    # The tolerance is for rounding errors: 0.9 of 10 nodules must be 9 nodules, not 10.
    rows = [int(np.argmax(sensitivity >= wanted - 1e-9)) for wanted in SENSITIVITIES]
    rows += (np.searchsorted(false, np.multiply(FALSE_POSITIVES_PER_SCAN, scans) + 1e-9, side="right") - 1).tolist()
    kinds = ["sensitivity"] * len(SENSITIVITIES) + ["false_positives_per_scan"] * len(FALSE_POSITIVES_PER_SCAN)
    return pd.DataFrame(columns).iloc[rows].assign(kind=kinds, wanted=[*SENSITIVITIES, *FALSE_POSITIVES_PER_SCAN])
