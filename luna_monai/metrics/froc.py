"""LUNA16's evaluation: free-response ROC, sensitivity at seven false-positive rates, and their mean, the CPM.

The rules are those of the challenge's official evaluation script (Setio et al. 2017,
https://doi.org/10.1016/j.media.2017.06.015; https://luna16.grand-challenge.org/Evaluation/):

* Per scan at most 100 candidates count. Where a submission has more, only those with a probability strictly above the
  101st highest are kept, so ties at the limit leave fewer.
* A candidate hits a finding when the squared distance of their centres is strictly below the squared radius. A finding
  whose diameter is negative, as LUNA16 writes unknown ones, counts as 10 mm wide.
* Of several candidates on one nodule the highest probability counts; the others are neither right nor wrong.
* Candidates that hit no nodule but an excluded finding are ignored.
* A nodule that no candidate hits stays in the denominator and can never be found.
* False positives per scan divide by all scans of the evaluation, with or without candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_monai.metrics.findings import FindingMatches, match_findings

#: False positives per scan at which LUNA16 reads the sensitivity; the CPM is the mean over them.
FALSE_POSITIVES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

# Sixteen steps an octave from 1/8 to 8: exp2 is exact at whole exponents, so every 16th value is a LUNA16 point.
_STEPS_PER_OCTAVE = 16
_INTERVAL_GRID = np.exp2(np.linspace(-3, 3, 6 * _STEPS_PER_OCTAVE + 1))

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FrocInterval:
    """How far the sensitivities vary when scans are drawn with replacement.

    Attributes:
        samples: number of bootstrap samples asked for.
        confidence: share of the samples between ``lower`` and ``upper``.
        false_positives_per_scan: 97 rates from 1/8 to 8, sixteen an octave.
        mean: mean sensitivity at each rate.
        lower: its lower percentile.
        upper: its upper percentile.
        cpm_mean: mean CPM.
        cpm_lower: its lower percentile.
        cpm_upper: its upper percentile.
    """

    samples: int
    confidence: float
    false_positives_per_scan: _FloatArray
    mean: _FloatArray
    lower: _FloatArray
    upper: _FloatArray
    cpm_mean: float
    cpm_lower: float
    cpm_upper: float


@dataclass(frozen=True, eq=False)
class FrocResult:
    """What LUNA16's evaluation says about one submission.

    Attributes:
        scans: number of scans evaluated.
        nodules: annotated nodules in them.
        candidates: candidates that the cap leaves.
        true_positives: nodules that a candidate hits, at any probability.
        false_negatives: nodules that none hits.
        false_positives: candidates that hit no finding at all.
        ignored_on_excluded: candidates that hit nothing but excluded findings.
        ignored_double_detections: further candidates on a nodule already hit.
        sensitivity: at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, shape (7,); NaN without nodules.
        cpm: their mean, LUNA16's score.
        curve_false_positives_per_scan: the corners of the FROC curve, from 0 upwards.
        curve_sensitivity: the sensitivity there.
        curve_threshold: the lowest probability that still counts there; the first is infinite.
        interval: the bootstrap interval, when asked for.
        matches: the candidates and nodules behind the counts.
    """

    scans: int
    nodules: int
    candidates: int
    true_positives: int
    false_negatives: int
    false_positives: int
    ignored_on_excluded: int
    ignored_double_detections: int
    sensitivity: _FloatArray
    cpm: float
    curve_false_positives_per_scan: _FloatArray
    curve_sensitivity: _FloatArray
    curve_threshold: _FloatArray
    interval: FrocInterval | None
    matches: FindingMatches

    def threshold_at(self, false_positives_per_scan: float) -> float:
        """Find the threshold of the highest sensitivity that keeps to a rate of false positives.

        Args:
            false_positives_per_scan: the rate not to be exceeded.

        Returns:
            The probability from which on (inclusive) candidates count; infinite when the rate admits none.
        """
        last = np.searchsorted(self.curve_false_positives_per_scan, false_positives_per_scan, side="right") - 1
        return float(self.curve_threshold[last])

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the single candidates as JSON knows it; undefined and infinite numbers are None."""
        result: dict[str, Any] = {
            "scans": self.scans,
            "total_number_of_nodules": self.nodules,
            "total_number_of_candidates": self.candidates,
            "average_number_of_candidates_per_scan": self.candidates / self.scans,
            "true_positives": self.true_positives,
            "false_negatives": self.false_negatives,
            "false_positives": self.false_positives,
            "ignored_candidates_on_excluded_findings": self.ignored_on_excluded,
            "ignored_double_detections": self.ignored_double_detections,
            "false_positives_per_scan": list(FALSE_POSITIVES_PER_SCAN),
            "sensitivity": _json_list(self.sensitivity),
            "cpm": _json_number(self.cpm),
            "curve": {
                "false_positives_per_scan": _json_list(self.curve_false_positives_per_scan),
                "sensitivity": _json_list(self.curve_sensitivity),
                "threshold": _json_list(self.curve_threshold),
            },
        }
        if self.interval is not None:
            interval = self.interval
            luna16_points = slice(None, None, _STEPS_PER_OCTAVE)
            result["bootstrap"] = {
                "samples": interval.samples,
                "confidence": interval.confidence,
                "sensitivity_mean": _json_list(interval.mean[luna16_points]),
                "sensitivity_lower": _json_list(interval.lower[luna16_points]),
                "sensitivity_upper": _json_list(interval.upper[luna16_points]),
                "cpm_mean": _json_number(interval.cpm_mean),
                "cpm_lower": _json_number(interval.cpm_lower),
                "cpm_upper": _json_number(interval.cpm_upper),
            }
        return result


def evaluate_froc(
    submission: pd.DataFrame,
    annotations: pd.DataFrame,
    excluded: pd.DataFrame | None,
    seriesuids: Sequence[str],
    *,
    bootstrap: int = 0,
    seed: int = 0,
    confidence: float = 0.95,
) -> FrocResult:
    """Evaluate candidates as LUNA16 does.

    Args:
        submission: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm) and ``probability``.
        annotations: the nodules to be found: ``seriesuid``, coordinates and ``diameter_mm``. Those of scans that are
            not in ``seriesuids`` do not count.
        excluded: findings that are neither right nor wrong, in the same form; None for none.
        seriesuids: the scans that are evaluated.
        bootstrap: number of bootstrap samples of scans; 0 for no interval.
        seed: of the bootstrap.
        confidence: share of the bootstrap samples inside the interval.

    Returns:
        Counts, sensitivities, CPM, curve and interval.

    Raises:
        LunaError: when a probability is undefined or outside 0..1, a coordinate is undefined, a candidate's scan is
            not in ``seriesuids``, or no scan is given.
    """
    matches = match_findings(submission, annotations, excluded, seriesuids)
    scans, nodules = len(matches.seriesuids), len(matches.nodules)
    found = matches.nodules[matches.nodules["probability"].notna()]
    outcomes = matches.candidates["outcome"]
    wrong = matches.candidates[outcomes == "false_positive"]

    events = pd.concat([found, wrong], ignore_index=True)
    curve = _FrocCurve(
        probability=events["probability"].to_numpy(dtype=float),
        is_nodule=np.arange(len(events)) < len(found),
        scan=pd.Index(matches.seriesuids).get_indexer(pd.Index(events["seriesuid"])),
    )
    nodules_per_scan = matches.nodules["seriesuid"].value_counts().reindex(list(matches.seriesuids), fill_value=0)
    weights = np.ones(scans)
    sensitivity = curve.sensitivity_at(np.asarray(FALSE_POSITIVES_PER_SCAN), weights, nodules)
    false_positive_counts, nodule_counts, thresholds = curve.corners(weights)
    return FrocResult(
        scans=scans,
        nodules=nodules,
        candidates=len(matches.candidates),
        true_positives=len(found),
        false_negatives=nodules - len(found),
        false_positives=len(wrong),
        ignored_on_excluded=int((outcomes == "excluded").sum()),
        ignored_double_detections=matches.double_detections,
        sensitivity=sensitivity,
        cpm=float(sensitivity.mean()),
        curve_false_positives_per_scan=false_positive_counts / scans,
        curve_sensitivity=nodule_counts / nodules if nodules else np.full(len(nodule_counts), np.nan),
        curve_threshold=thresholds,
        interval=_bootstrap(curve, np.asarray(nodules_per_scan, dtype=float), bootstrap, seed, confidence)
        if bootstrap
        else None,
        matches=matches,
    )


class _FrocCurve:
    """The events of an evaluation in the order of falling probability, ready for any weighting of the scans."""

    def __init__(self, probability: _FloatArray, is_nodule: NDArray[np.bool_], scan: NDArray[np.intp]) -> None:
        order = np.argsort(-probability, kind="stable")
        self._scan = scan[order]
        self._is_nodule = is_nodule[order]
        probability = probability[order]
        # Equal probabilities enter the curve together.
        self._ends = np.flatnonzero(np.append(np.diff(probability) != 0, True)) if len(probability) else order
        self._threshold = probability[self._ends]

    def counts(self, scan_weights: _FloatArray) -> tuple[_FloatArray, _FloatArray]:
        """Count false positives and found nodules from each threshold on, beginning with none."""
        weights = scan_weights[self._scan]
        false_positives = np.cumsum(np.where(self._is_nodule, 0.0, weights))[self._ends]
        nodules = np.cumsum(np.where(self._is_nodule, weights, 0.0))[self._ends]
        return np.insert(false_positives, 0, 0.0), np.insert(nodules, 0, 0.0)

    def corners(self, scan_weights: _FloatArray) -> tuple[_FloatArray, _FloatArray, _FloatArray]:
        """Give the counts and thresholds between which the curve runs straight along an axis, or in one tied step."""
        false_positives, nodules = self.counts(scan_weights)
        new_false_positives, new_nodules = np.diff(false_positives) > 0, np.diff(nodules) > 0
        turns_right = new_nodules[:-1] & new_false_positives[1:]
        turns_up = new_false_positives[:-1] & new_nodules[1:]
        keep = np.concatenate([[True], turns_right | turns_up, [True]])[: len(nodules)]
        return false_positives[keep], nodules[keep], np.insert(self._threshold, 0, math.inf)[keep]

    def sensitivity_at(self, rates: _FloatArray, scan_weights: _FloatArray, nodules: float) -> _FloatArray:
        """Interpolate the sensitivity at rates of false positives per scan."""
        if nodules == 0:
            return np.full(len(rates), np.nan)
        false_positives, found = self.counts(scan_weights)
        return np.interp(rates, false_positives / len(scan_weights), found / nodules)


def _bootstrap(
    curve: _FrocCurve, nodules_per_scan: _FloatArray, samples: int, seed: int, confidence: float
) -> FrocInterval:
    generator = np.random.default_rng(seed)
    scans = len(nodules_per_scan)
    sensitivity = np.empty((samples, len(_INTERVAL_GRID)))
    for row in sensitivity:
        weights = np.bincount(generator.integers(scans, size=scans), minlength=scans).astype(float)
        row[:] = curve.sensitivity_at(_INTERVAL_GRID, weights, float(weights @ nodules_per_scan))
    # A sample that drew no scan with a nodule says nothing about sensitivity.
    sensitivity = sensitivity[~np.isnan(sensitivity).any(axis=1)]
    if len(sensitivity) == 0:
        sensitivity = np.full((1, len(_INTERVAL_GRID)), np.nan)
    percentiles = [50 * (1 - confidence), 50 * (1 + confidence)]
    lower, upper = np.percentile(sensitivity, percentiles, axis=0)
    cpm = sensitivity[:, ::_STEPS_PER_OCTAVE].mean(axis=1)
    cpm_lower, cpm_upper = np.percentile(cpm, percentiles)
    return FrocInterval(
        samples=samples,
        confidence=confidence,
        false_positives_per_scan=_INTERVAL_GRID,
        mean=sensitivity.mean(axis=0),
        lower=lower,
        upper=upper,
        cpm_mean=float(cpm.mean()),
        cpm_lower=float(cpm_lower),
        cpm_upper=float(cpm_upper),
    )


def _json_number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _json_list(values: _FloatArray) -> list[float | None]:
    return [_json_number(value) for value in values]
