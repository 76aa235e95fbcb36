"""Operating points against all thresholds there are."""

import numpy as np
import pytest

from luna_monai.metrics.calibration import operating_points


def measured(probability, is_nodule, scans, threshold):
    called = np.asarray(probability) > threshold
    precision = is_nodule[called].mean() if called.any() else np.nan
    return called[is_nodule].mean(), called[~is_nodule].sum() / scans, precision


@pytest.mark.parametrize("seed", range(20))
def test_operating_points_are_the_best_of_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    probability = generator.choice(np.linspace(0, 1, 15), size=60)
    is_nodule = generator.random(60) < 0.3
    every = [measured(probability, is_nodule, 4, t) for t in [-1.0, *np.unique(probability)]]
    points = operating_points(probability, is_nodule, 4)
    assert len(points) == 11
    for point in points.itertuples():
        found = (point.sensitivity, point.false_positives_per_scan, point.precision)
        assert found == pytest.approx(measured(probability, is_nodule, 4, point.threshold), nan_ok=True)
        # The threshold is far from every probability, so that rounding does not matter.
        assert np.abs(probability - point.threshold).min() > 0.01 or point.threshold == 1
        if point.kind == "sensitivity":
            fewest = min(rate for sensitivity, rate, _ in every if sensitivity >= point.wanted)
            assert point.sensitivity >= point.wanted
            assert point.false_positives_per_scan == fewest
        else:
            highest = max(sensitivity for sensitivity, rate, _ in every if rate <= point.wanted)
            assert point.false_positives_per_scan <= point.wanted
            assert point.sensitivity == highest


def test_ends_of_the_scale():
    zero = operating_points([0.0, 0.0], [1, 0], 1)
    assert (zero.loc[zero["kind"] == "sensitivity", "threshold"] < 0).all()
    one = operating_points([1.0, 1.0], [0, 1], 1).iloc[4]
    assert (one["wanted"], one["sensitivity"], one["threshold"]) == (0.125, 0, 1)
    assert np.isnan(one["precision"])
    below, above = np.float64(0.5), np.nextafter(0.5, 1)
    assert operating_points([below, above], [0, 1], 1)["threshold"].iloc[0] == below, "no number lies between the two"
