"""Calibration against what made the data, and against scikit-learn and SciPy."""

import json

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from luna_monai.metrics.calibration import (
    Calibration,
    cross_fit_calibration,
    fit_calibration,
    log_odds_of_logits,
    log_odds_of_probability,
    reliability,
)


@pytest.fixture(scope="module")
def overconfident():
    """Candidates drawn from known probabilities, 2 % nodules; the model is twice too sure and believes in 50 %."""
    generator = np.random.default_rng(0)
    is_nodule = generator.random(200_000) < 0.02
    # Two unit normals 4 apart: the true log-odds of a value v are 4 v - 8 + logit(share).
    value = generator.normal(4.0 * is_nodule)
    return 2 * (4 * value - 8), is_nodule


def test_fit_finds_temperature_and_shift_that_made_the_data(overconfident):
    log_odds, is_nodule = overconfident
    calibration = fit_calibration(log_odds, is_nodule)
    assert calibration.temperature == pytest.approx(2, rel=0.03)
    assert calibration.intercept == pytest.approx(logit(0.02), abs=0.08)
    assert calibration.prevalence == is_nodule.mean()
    before = reliability(expit(log_odds), is_nodule)
    after = reliability(calibration.apply(log_odds), is_nodule)
    assert before["expected_calibration_error"] > 10 * after["expected_calibration_error"]
    assert after["expected_calibration_error"] < 0.002
    assert after["brier_score"] < before["brier_score"]
    assert Calibration(**json.loads(json.dumps(vars(calibration)))) == calibration


def test_fit_is_logistic_regression_without_penalty(overconfident):
    log_odds, is_nodule = (values[:20_000] for values in overconfident)
    calibration = fit_calibration(log_odds, is_nodule)
    regression = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(log_odds[:, None], is_nodule)
    assert 1 / calibration.temperature == pytest.approx(regression.coef_[0, 0], rel=1e-4)
    assert calibration.intercept == pytest.approx(regression.intercept_[0], rel=1e-4)


def test_each_scan_is_calibrated_by_a_fit_on_others():
    generator = np.random.default_rng(3)
    scan = np.repeat([f"scan {k}" for k in range(12)], 50)
    is_nodule = generator.random(600) < 0.1
    log_odds = generator.normal(3.0 * is_nodule - 1.5)
    probability, folds = cross_fit_calibration(log_odds, is_nodule, scan)
    assert folds == 5
    assert ((probability > 0) & (probability < 1)).all()
    # Another value of one candidate changes the fits for other scans, and leaves the other candidates of its own.
    changed = log_odds.copy()
    one = np.flatnonzero((scan == "scan 4") & ~is_nodule)[0]
    changed[one] += 9
    again, _ = cross_fit_calibration(changed, is_nodule, scan)
    moved = again != probability
    assert np.flatnonzero(moved & (scan == "scan 4")).tolist() == [one]
    assert len(np.unique(scan[moved])) >= 6
    # Pure noise with few scans: evaluated on what it was fitted on, even that looks calibrated.
    noise, few = generator.normal(0, 3, 60), generator.random(60) < 0.3
    names = np.repeat(list("abcdef"), 10)
    in_sample = reliability(fit_calibration(noise, few).apply(noise), few)["brier_score"]
    assert reliability(cross_fit_calibration(noise, few, names)[0], few)["brier_score"] > in_sample


def test_calibration_keeps_the_order_and_gives_the_right_mean(overconfident):
    log_odds, is_nodule = overconfident
    calibration = fit_calibration(log_odds, is_nodule)
    assert calibration.apply(log_odds).mean() == pytest.approx(is_nodule.mean(), rel=1e-9)
    some = log_odds[:1000]
    assert (np.argsort(calibration.apply(some), kind="stable") == np.argsort(some, kind="stable")).all()


def test_separable_and_extreme_data_stay_finite():
    calibration = fit_calibration([-1e3, -5.0, 5.0, 1e3], [0, 0, 1, 1])
    assert 0.05 <= calibration.temperature < 0.5
    assert np.isfinite(calibration.intercept)
    np.testing.assert_allclose(calibration.apply([-1e3, -5.0, 5.0, 1e3]), [0, 0, 1, 1], atol=1e-6)
    opposite = fit_calibration([5.0, 5.0, -5.0, 4.0], [0, 0, 1, 1])
    assert opposite.temperature == pytest.approx(20)
    np.testing.assert_allclose(log_odds_of_probability([0, 0.5, 1]), [-17.33, 0, 17.33], atol=0.01)


def test_log_odds_of_two_logits_are_those_of_their_softmax():
    logits = np.array([[0.3, 2.0], [1.0, -4.0]])
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(log_odds_of_logits(logits), log_odds_of_probability(softmax[:, 1]))


def test_reliability_adds_counts_to_scikit_learns_curve():
    generator = np.random.default_rng(1)
    probability = generator.beta(0.3, 1.0, size=5000)
    is_nodule = generator.random(5000) < probability**1.5
    probability[:3] = (0.0, 0.25, 1.0)  # edges of bins
    curve = reliability(probability, is_nodule, bins=12)
    for k in range(12):
        low, high = k / 12, (k + 1) / 12
        inside = (probability > low) & (probability <= high) | (probability == 0) & (low == 0)
        assert curve["count"][k] == inside.sum()
        assert curve["positive_share"][k] == pytest.approx(is_nodule[inside].mean())
        assert curve["mean_probability"][k] == pytest.approx(probability[inside].mean())
    differences = np.abs(np.subtract(curve["positive_share"], curve["mean_probability"]))
    assert curve["expected_calibration_error"] == pytest.approx((curve["count"] * differences).sum() / 5000)
    assert json.loads(json.dumps(curve, allow_nan=False)) == curve


def test_reliability_of_constant_probabilities():
    curve = reliability([0.25] * 4, [0, 0, 0, 1])
    assert curve["count"] == [4]
    assert curve["expected_calibration_error"] == 0
    assert reliability([0.25], [0])["positive_share"] == [0], "one class"
