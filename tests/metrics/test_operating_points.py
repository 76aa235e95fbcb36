"""Operating points against all thresholds there are."""

import json
import math

import numpy as np
import pytest

from luna_monai.errors import LunaError
from luna_monai.metrics.operating_points import operating_point, point_for_false_positives, point_for_sensitivity


@pytest.mark.parametrize("seed", range(20))
def test_operating_points_are_the_best_of_all_thresholds(seed):
    generator = np.random.default_rng(seed)
    probability = generator.choice(np.linspace(0, 1, 15), size=60)
    is_nodule = generator.random(60) < 0.3
    scans = 4
    every = [operating_point(probability, is_nodule, scans, t) for t in [-1.0, *np.unique(probability)]]
    for wanted in (0.1, 0.5, 0.9, 1.0):
        point = point_for_sensitivity(probability, is_nodule, scans, wanted)
        assert point.sensitivity >= wanted
        fewest = min(other.false_positives_per_scan for other in every if other.sensitivity >= wanted)
        assert point.false_positives_per_scan == fewest
        # The threshold is far from every probability, so that rounding does not matter.
        assert np.abs(probability - point.threshold).min() > 0.01
    for rate in (0, 0.25, 1, 3, 100):
        point = point_for_false_positives(probability, is_nodule, scans, rate)
        assert point.false_positives_per_scan <= rate
        assert point.sensitivity == max(o.sensitivity for o in every if o.false_positives_per_scan <= rate)


def test_operating_point_by_hand():
    point = operating_point([0.5, 0.6, 0.7, 0.8], [1, 0, 1, 1], scans=2, threshold=0.5)
    assert (point.sensitivity, point.false_positives_per_scan, point.precision) == (2 / 3, 0.5, 2 / 3)
    nothing = operating_point([0.5], [1], scans=1, threshold=0.5)
    assert (nothing.sensitivity, nothing.precision) == (0.0, None)
    assert math.isnan(operating_point([0.5], [0], scans=1, threshold=0.4).sensitivity)
    assert point_for_sensitivity([0.0, 0.0], [1, 0], 1, 1.0).threshold < 0
    assert point_for_false_positives([1.0, 1.0], [0, 1], 1, 0).sensitivity == 0
    assert json.loads(json.dumps(point.to_dict()))["threshold"] == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: operating_point([0.1], [1], 0, 0.5), "scans must be at least 1"),
        (lambda: point_for_sensitivity([0.1], [1], 1, 1.1), "at most 1, found 1.1"),
        (lambda: point_for_sensitivity([0.1], [0], 1, 0.9), "at least one nodule"),
        (lambda: point_for_false_positives([0.1], [0], 1, -1), "must not be negative"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(LunaError, match=message):
        call()
