"""Input that metrics refuse, or for which a value is undefined: one row a condition."""

import math

import numpy as np
import pandas as pd
import pytest

from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import (
    calibration_summary,
    cross_fit_calibration,
    fit_calibration,
    log_odds_of_probability,
    operating_points,
    reliability,
)
from luna_monai.metrics.froc import evaluate_froc
from luna_monai.metrics.per_class import per_class_metrics

NAN = math.nan
POSITION = {"seriesuid": ["a", "a"], "coordX": [0.0, 9.0], "coordY": 0.0, "coordZ": 0.0}
NODULES = pd.DataFrame(POSITION | {"diameter_mm": 6.0})


def froc(seriesuids=("a",), bootstrap=0, annotations=NODULES, **changes):
    submission = pd.DataFrame(POSITION | {"probability": 0.5}).assign(**changes)
    return evaluate_froc(submission, annotations, None, list(seriesuids), bootstrap=bootstrap)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        # Submissions
        (
            lambda: froc(probability=[0.5, 1.5]),
            "a probability from 0 to 1 in one of the 1 scans to evaluate, found 1.5",
        ),
        (lambda: froc(probability=[0.5, -0.1]), "found -0.1 in a in data row 2 (1 such rows)"),
        (lambda: froc(probability=[NAN, 0.1]), "found nan in a in data row 1"),
        (lambda: froc(seriesuid=["a", "zz"]), "found 0.5 in zz in data row 2"),
        (lambda: froc(bootstrap=1_000_000_000), "between 0 and 100,000, found 1,000,000,000"),
        (lambda: froc(bootstrap=-1), "between 0 and 100,000, found -1"),
        # Calibration
        (lambda: fit_calibration([0.0, 1.0], [0, 0]), "both classes"),
        (lambda: fit_calibration([], []), "both classes"),
        (lambda: cross_fit_calibration([0.0, 1.0, 2.0], [0, 1, 1], ["a", "b", "b"]), "two scans with nodules"),
        (lambda: log_odds_of_probability([0.5, 1.1]), "between 0 and 1, found 1.1"),
        (lambda: calibration_summary([0.5, NAN], [0, 1], ["a", "b"]), "between 0 and 1, found nan"),
        (lambda: calibration_summary([0.5, 0.6], [1, 1], ["a", "b"]), "both classes"),
        (lambda: calibration_summary([], [], []), "both classes"),
    ],
)
def test_refused_with_the_value_and_where_it_is(call, message):
    with pytest.raises(LunaError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: froc(annotations=NODULES.iloc[:0]).cpm, NAN),
        (lambda: froc(annotations=NODULES.assign(seriesuid="elsewhere")).cpm, NAN),
        (lambda: froc(annotations=NODULES.assign(diameter_mm=NAN)).cpm, 0.0),
        (lambda: froc(probability=0.0).cpm, 1.0),
        (lambda: froc(seriesuids=["a", "b"]).scans, 2),
        (lambda: per_class_metrics([1, 0], [NAN, 0.5], [0, 0])["roc_auc"], NAN),
        (lambda: per_class_metrics([1, 1], [0.5, 0.5], [0, 0])["roc_auc"], NAN),
        (lambda: per_class_metrics([1, 0], [0.5, 0.5], [0, 0])["roc_auc"], 0.5),
        (lambda: fit_calibration([0.0] * 4, [0, 0, 0, 1]).apply(0.0), 0.25),
        (lambda: reliability([1.0], [0])["brier_score"], 1.0),
        (lambda: operating_points([0.5, 0.5], [0, 1], 1)["sensitivity"].iloc[0], 1.0),
    ],
)
def test_values_at_the_edge_of_what_is_defined(call, expected):
    assert call() == pytest.approx(expected, nan_ok=True)


def test_one_candidate_that_is_everything():
    summary = calibration_summary([0.9, 0.1], [1, 0], ["a", "a"])
    assert summary["reliability"]["calibrated"] is None
    assert summary["fitted_on"] == {"scans": 1, "candidates": 2, "nodule_candidates": 1}
    assert np.isfinite(summary["calibration"]["temperature"])
