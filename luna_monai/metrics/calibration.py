"""Probabilities that mean what they say.

A model trained on as many nodules as non-nodules believes that every other candidate is a nodule, while one in 400 is.
In log-odds that is a constant shift (Elkan 2001, "The foundations of cost-sensitive learning"), and overconfidence is
a factor, the temperature (Guo et al. 2017, https://arxiv.org/abs/1706.04599). Both are fitted on validation data here;
neither changes the order of the candidates. What a fit is worth is judged on scans that it has not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.model_selection import StratifiedGroupKFold

from luna_monai.errors import LunaError
from luna_monai.metrics.checks import checked_classes, checked_probability

_FloatArray = NDArray[np.float64]

# Softmax in float32 saturates at 1 - 6e-8; beyond that a probability says nothing about its logit.
_PROBABILITY_MARGIN = 2.0**-25
_TEMPERATURE_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """A map from a model's log-odds to calibrated probabilities: ``sigmoid(log_odds / temperature + shift)``.

    Attributes:
        temperature: above 1 where the model is overconfident.
        shift: added to the log-odds; negative where nodules are rarer than in training.
        nodule_share: share of nodules for which the shift holds.
    """

    temperature: float = 1.0
    shift: float = 0.0
    nodule_share: float | None = None

    def apply(self, log_odds: ArrayLike) -> _FloatArray:
        """Turn log-odds of any shape into calibrated probabilities of a nodule."""
        return np.asarray(expit(np.asarray(log_odds, dtype=float) / self.temperature + self.shift))

    def for_nodule_share(self, nodule_share: float) -> Calibration:
        """Adapt to candidates among which nodules are rarer or more frequent than where this was fitted.

        Args:
            nodule_share: share of nodules among the new candidates, between 0 and 1.

        Returns:
            The same temperature with another shift.

        Raises:
            LunaError: when a share is not between 0 and 1, or it is not known for which share this one holds.
        """
        if self.nodule_share is None:
            raise LunaError("this calibration does not say for which share of nodules it holds; fit it again")
        shift = self.shift + prior_shift(self.nodule_share, nodule_share)
        return Calibration(self.temperature, shift, nodule_share)

    def to_dict(self) -> dict[str, float | None]:
        """Give the attributes as JSON knows them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often candidates of some predicted probability are nodules; only bins with candidates are listed.

    Attributes:
        lower_edge: lower edge of each bin, shape (bins,).
        upper_edge: upper edge of each bin.
        count: candidates in it.
        mean_probability: their mean predicted probability.
        positive_share: the share of nodules among them.
        lower: lower end of the share's 95 % Wilson interval.
        upper: upper end of it.
        expected_calibration_error: mean of ``|positive_share - mean_probability|``, weighted by ``count``.
        brier_score: mean squared difference of probability and class.
    """

    lower_edge: _FloatArray
    upper_edge: _FloatArray
    count: NDArray[np.int64]
    mean_probability: _FloatArray
    positive_share: _FloatArray
    lower: _FloatArray
    upper: _FloatArray
    expected_calibration_error: float
    brier_score: float

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reliability:
        """Take over what :meth:`to_dict` returned."""
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in content.items() if isinstance(value, list)}
        return cls(**{**content, **arrays})

    def to_dict(self) -> dict[str, Any]:
        """Give the attributes as JSON knows them."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        }


def log_odds_of_logits(logits: ArrayLike) -> _FloatArray:
    """Turn a model's two outputs into the log-odds of a nodule.

    Args:
        logits: shape (..., 2); class 1 is the nodule.

    Returns:
        Shape (...).

    Raises:
        LunaError: when the last axis does not have two classes.
    """
    logits = np.asarray(logits, dtype=float)
    if logits.ndim == 0 or logits.shape[-1] != 2:
        raise LunaError(f"logits must have two classes on their last axis, found shape {logits.shape}")
    return np.asarray(logits[..., 1] - logits[..., 0])


def log_odds_of_probability(probability: ArrayLike) -> _FloatArray:
    """Turn probabilities of a nodule into log-odds, at most 17.3 in size, which is what float32 can tell apart.

    Args:
        probability: of any shape.

    Returns:
        The same shape.

    Raises:
        LunaError: when a value is undefined or outside 0..1.
    """
    probability = checked_probability(probability)
    return np.asarray(logit(np.clip(probability, _PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)))


def prior_shift(from_share: float, to_share: float) -> float:
    """Compute what a change in the share of nodules adds to the log-odds.

    Args:
        from_share: share of nodules that the probabilities assume, such as 0.5 after balanced training.
        to_share: share of nodules among the candidates to be judged.

    Returns:
        The shift in log-odds.

    Raises:
        LunaError: when a share is not between 0 and 1.
    """
    for share in (from_share, to_share):
        if not 0 < share < 1:
            raise LunaError(f"a share of nodules must lie between 0 and 1, found {share:g}")
    return float(logit(to_share) - logit(from_share))


def fit_calibration(log_odds: ArrayLike, is_nodule: ArrayLike, *, fit_temperature: bool = True) -> Calibration:
    """Fit temperature and shift by least cross entropy on validation data.

    Args:
        log_odds: of each candidate, shape (n,).
        is_nodule: its class, 0 or 1, shape (n,).
        fit_temperature: False fits the shift alone, which is all that a change in the share of nodules asks for.

    Returns:
        The calibration, its temperature within 0.05 to 20: where the classes are perfectly separated the best fit is
        infinitely sharp.

    Raises:
        LunaError: when there is no nodule or nothing but nodules, or a value is not finite.
    """
    log_odds = np.asarray(log_odds, dtype=float)
    target = checked_classes(is_nodule, log_odds.shape)
    if not np.isfinite(log_odds).all():
        raise LunaError(f"log-odds must be finite, found {log_odds[~np.isfinite(log_odds)][0]}")
    if target.all() or not target.any():
        raise LunaError("a calibration needs candidates of both classes, found one class only")

    def cross_entropy(parameters: _FloatArray) -> tuple[float, _FloatArray]:
        slope, shift = parameters
        scores = slope * log_odds + shift
        # Cross entropy of a sigmoid, without overflow: log(1 + exp(s)) - t s.
        loss = (np.logaddexp(scores, 0) - target * scores).mean()
        error = expit(scores) - target
        return float(loss), np.array([(error * log_odds).mean(), error.mean()])

    coldest, hottest = _TEMPERATURE_RANGE
    slope_bounds = (1 / hottest, 1 / coldest) if fit_temperature else (1.0, 1.0)
    start = np.array([1.0, prior_shift(0.5, float(target.mean()))])
    # The loss is convex in slope and shift, so the minimum that is found is the only one.
    options = {"ftol": 1e-14, "gtol": 1e-10, "maxiter": 1000}
    fit = minimize(
        cross_entropy, start, jac=True, method="L-BFGS-B", bounds=[slope_bounds, (None, None)], options=options
    )
    return Calibration(float(1 / fit.x[0]), float(fit.x[1]), float(target.mean()))


def cross_fit_calibration(
    log_odds: ArrayLike, is_nodule: ArrayLike, seriesuid: ArrayLike, *, folds: int = 5
) -> tuple[_FloatArray, int]:
    """Calibrate each scan by what is fitted on other scans, as new scans will be.

    Args:
        log_odds: of each candidate, shape (n,).
        is_nodule: its class, 0 or 1, shape (n,).
        seriesuid: its scan, shape (n,); a scan is never on both sides.
        folds: parts of the scans; fewer where fewer scans have a nodule.

    Returns:
        The calibrated probabilities, shape (n,), and the number of folds.

    Raises:
        LunaError: as :func:`fit_calibration`, and when only one scan has a nodule, or only one has anything else.
    """
    log_odds = np.asarray(log_odds, dtype=float)
    target = checked_classes(is_nodule, log_odds.shape)
    scan = np.asarray(seriesuid)
    folds = min(folds, len(np.unique(scan[target])), len(np.unique(scan[~target])))
    if folds < 2:
        raise LunaError("to judge a calibration on scans that it was not fitted on, two scans with nodules are needed")
    probability = np.empty(len(log_odds))
    for others, held_out in StratifiedGroupKFold(folds).split(log_odds, target, scan):
        probability[held_out] = fit_calibration(log_odds[others], target[others]).apply(log_odds[held_out])
    return probability, folds


def reliability(
    probability: ArrayLike, is_nodule: ArrayLike, *, bins: int = 10, equal_counts: bool = False
) -> Reliability:
    """Compare predicted probabilities with how often they come true.

    Args:
        probability: of a nodule, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        bins: number of bins.
        equal_counts: bins with about equally many candidates instead of equally wide ones. As nearly all candidates
            of a CT are no nodules and most have tiny probabilities, such bins look closely at the low end.

    Returns:
        The reliability curve and its errors.

    Raises:
        LunaError: when a probability is undefined or outside 0..1, a class is neither 0 nor 1, or nothing is given.
    """
    probability = checked_probability(probability)
    target = checked_classes(is_nodule, probability.shape)
    if bins < 1:
        raise LunaError(f"bins must be at least 1, found {bins}")
    if len(probability) == 0:
        raise LunaError("a reliability curve needs at least one candidate")
    edges = np.linspace(0, 1, bins + 1)
    if equal_counts:
        edges = np.unique(np.quantile(probability, edges))
    # As in scikit-learn's calibration_curve: a value on an inner edge belongs to the bin below.
    which = np.searchsorted(edges[1:-1], probability)
    last = max(len(edges) - 1, 1)
    count = np.bincount(which, minlength=last)
    used = count > 0
    count = count[used]
    mean_probability = np.bincount(which, weights=probability, minlength=last)[used] / count
    positive_share = np.bincount(which, weights=target, minlength=last)[used] / count
    lower, upper = wilson_interval(positive_share * count, count)
    return Reliability(
        lower_edge=edges[:last][used],
        upper_edge=edges[-last:][used],
        count=count,
        mean_probability=mean_probability,
        positive_share=positive_share,
        lower=lower,
        upper=upper,
        expected_calibration_error=float(np.average(np.abs(positive_share - mean_probability), weights=count)),
        brier_score=float(np.mean((probability - target) ** 2)),
    )


def wilson_interval(successes: ArrayLike, trials: ArrayLike) -> tuple[_FloatArray, _FloatArray]:
    """Compute the 95 % interval of a share (Wilson 1927), which stays inside 0..1 and is honest for small counts.

    Args:
        successes: counts of any shape.
        trials: counts of the same shape.

    Returns:
        Lower and upper end; 0 and 1 where there was no trial.
    """
    successes, trials = np.asarray(successes, dtype=float), np.asarray(trials, dtype=float)
    z = 1.959963984540054
    with np.errstate(invalid="ignore", divide="ignore"):
        share = successes / trials
        center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
        half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    lower = np.where(trials > 0, np.clip(center - half, 0, 1), 0.0)
    upper = np.where(trials > 0, np.clip(center + half, 0, 1), 1.0)
    return lower, upper
