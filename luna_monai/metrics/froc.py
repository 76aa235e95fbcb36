"""LUNA16's evaluation: free-response ROC, sensitivity at seven false-positive rates, and their mean, the CPM.

The rules are those of the challenge's official evaluation script (Setio et al. 2017,
https://doi.org/10.1016/j.media.2017.06.015; https://luna16.grand-challenge.org/Evaluation/):

* Per scan at most 100 candidates count. Where a submission has more, only those with a probability strictly above the
  101st highest are kept, so ties at the limit leave fewer.
* A candidate hits a finding when the squared distance of their centers is strictly below the squared radius. A finding
  whose diameter is negative, as LUNA16 writes unknown ones, counts as 10 mm wide.
* Of several candidates on one nodule the highest probability counts; the others are neither right nor wrong.
* Candidates that hit no nodule but an excluded finding are ignored.
* A nodule that no candidate hits stays in the denominator and can never be found.
* False positives per scan divide by all scans of the evaluation, with or without candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_monai.data import subset_of
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.metrics.findings import FindingMatches, match_findings

#: False positives per scan at which LUNA16 reads the sensitivity; the CPM is the mean over them.
FALSE_POSITIVES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_BOOTSTRAP = 100_000
#: Share of the bootstrap samples inside the interval.
CONFIDENCE = 0.95

# Sixteen steps an octave from 1/8 to 8: exp2 is exact at whole exponents, so every 16th value is a LUNA16 point.
_STEPS_PER_OCTAVE = 16
_INTERVAL_GRID = np.exp2(np.linspace(-3, 3, 6 * _STEPS_PER_OCTAVE + 1))

#: Of a submission.
FROC_COLUMNS = ["seriesuid", *COORDINATES, "probability"]

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FrocInterval:
    """Spread of the sensitivities when scans are drawn with replacement.

    Attributes:
        samples: number of bootstrap samples asked for.
        curve: ``false_positives_per_scan`` (97 rates from 1/8 to 8, sixteen an octave), and of the sensitivity at each
            rate ``mean``, and ``lower`` and ``upper`` end of the 95 % interval.
        cpm: the same three of the CPM.
    """

    samples: int
    curve: pd.DataFrame
    cpm: dict[str, float]

    @property
    def luna16_points(self) -> pd.DataFrame:
        """The rows of ``curve`` at LUNA16's seven rates."""
        return self.curve.iloc[::_STEPS_PER_OCTAVE]


@dataclass(frozen=True, eq=False)
class FrocResult:
    """LUNA16's evaluation of one submission.

    Attributes:
        counts: ``scans`` evaluated; ``total_number_of_nodules`` in them; ``total_number_of_candidates`` that the cap
            leaves; ``true_positives`` and ``false_negatives``, nodules that a candidate hits at any probability, or
            none; ``false_positives``, candidates that hit no finding at all;
            ``ignored_candidates_on_excluded_findings``; ``ignored_double_detections`` on a nodule already hit.
        sensitivity: at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, shape (7,); NaN without nodules.
        cpm: their mean, LUNA16's score.
        curve: the corners of the FROC curve, from 0 upwards: ``false_positives_per_scan``, ``sensitivity`` and
            ``threshold``, the lowest probability that still counts there; the first is infinite.
        interval: the bootstrap interval, when asked for.
        matches: the candidates and nodules behind the counts.
    """

    counts: dict[str, int]
    sensitivity: _FloatArray
    cpm: float
    curve: pd.DataFrame
    interval: FrocInterval | None
    matches: FindingMatches

    @property
    def scans(self) -> int:
        """Number of scans evaluated."""
        return self.counts["scans"]

    @property
    def nodules(self) -> int:
        """Number of annotated nodules in them."""
        return self.counts["total_number_of_nodules"]

    def threshold_at(self, false_positives_per_scan: float) -> float:
        """Find the threshold of the highest sensitivity that keeps to a rate of false positives.

        Returns:
            The probability from which on (inclusive) candidates count; infinite when the rate admits none.
        """
        last = np.searchsorted(self.curve["false_positives_per_scan"], false_positives_per_scan, side="right") - 1
        return float(self.curve["threshold"].iloc[last])

    def summary(self) -> str:
        """Say in words how many nodules are found at which rate of false positives."""
        if not self.nodules:
            return f"no annotated nodule in {self.scans} scans"
        at_1, at_4 = (self.sensitivity[FALSE_POSITIVES_PER_SCAN.index(rate)] for rate in (1, 4))
        interval = f" ({CONFIDENCE:.0%} interval {{lower:.4f}} to {{upper:.4f}})" if self.interval else ""
        return (
            f"{self.nodules} nodules in {self.scans} scans, sensitivity {at_1:.3f} at 1 and {at_4:.3f} at 4 false "
            f"positives per scan, CPM {self.cpm:.4f}" + interval.format(**self.interval.cpm if self.interval else {})
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all but the single candidates for :func:`luna_monai.files.write_json`."""
        result = {
            **self.counts,
            "average_number_of_candidates_per_scan": self.counts["total_number_of_candidates"] / self.scans,
            "false_positives_per_scan": list(FALSE_POSITIVES_PER_SCAN),
            "sensitivity": self.sensitivity.tolist(),
            "cpm": self.cpm,
            "curve": self.curve.to_dict("list"),
        }
        if self.interval is not None:
            points = self.interval.luna16_points.drop(columns="false_positives_per_scan").add_prefix("sensitivity_")
            of_cpm = {f"cpm_{name}": value for name, value in self.interval.cpm.items()}
            settings = {"samples": self.interval.samples, "confidence": CONFIDENCE}
            result["bootstrap"] = {**settings, **points.to_dict("list"), **of_cpm}
        return result


def check_bootstrap(samples: int) -> None:
    """Refuse a number of bootstrap samples that is negative or does not fit into memory."""
    if not 0 <= samples <= MAX_BOOTSTRAP:
        raise LunaError(f"bootstrap samples must be between 0 and {MAX_BOOTSTRAP:,}, found {samples:,}")


def evaluated_scans(validated: Iterable[str], trained: Iterable[str], scans: Mapping[str, Path]) -> list[str]:
    """List the scans of an evaluation, those without candidates included.

    Args:
        validated: series UIDs of the validation candidates.
        trained: series UIDs of all other candidates.
        scans: the CT of each series on disk.

    Returns:
        The validated scans, and of the same LUNA16 subsets those that have no candidate at all; sorted.
    """
    chosen = set(validated)
    subsets = {subset_of(scans[uid]) for uid in chosen if uid in scans}
    without = scans.keys() - chosen - set(trained)
    return sorted(chosen | {uid for uid in without if subset_of(scans[uid]) in subsets})


def evaluate_froc(
    submission: pd.DataFrame,
    annotations: pd.DataFrame,
    excluded: pd.DataFrame | None,
    seriesuids: Sequence[str],
    *,
    bootstrap: int = 0,
    seed: int = 0,
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

    Returns:
        Counts, sensitivities, CPM, curve and interval.

    Raises:
        LunaError: when a probability is undefined or outside 0..1, a candidate's scan is not in ``seriesuids``, or
            more than 100,000 bootstrap samples are requested.
    """
    check_bootstrap(bootstrap)
    matches = match_findings(submission, annotations, excluded, seriesuids)
    uids = pd.Index(seriesuids)
    scans, nodules = len(uids), len(matches.nodules)
    found = matches.nodules[matches.nodules["probability"].notna()]
    outcomes = matches.candidates["outcome"]
    wrong = matches.candidates[outcomes == "false_positive"]

    events = pd.concat([part for part in (found, wrong) if len(part)] or [found], ignore_index=True)
    curve = _FrocCurve(
        probability=events["probability"].to_numpy(dtype=float),
        is_nodule=np.arange(len(events)) < len(found),
        scan=uids.get_indexer(pd.Index(events["seriesuid"])),
    )
    nodules_per_scan = matches.nodules["seriesuid"].value_counts().reindex(uids, fill_value=0)
    sensitivity = curve.sensitivity_at(np.asarray(FALSE_POSITIVES_PER_SCAN), np.ones(scans), nodules)
    counts = {
        "scans": scans,
        "total_number_of_nodules": nodules,
        "total_number_of_candidates": len(outcomes),
        "true_positives": len(found),
        "false_negatives": nodules - len(found),
        "false_positives": len(wrong),
        "ignored_candidates_on_excluded_findings": int((outcomes == "excluded").sum()),
        "ignored_double_detections": matches.double_detections,
    }
    interval = _bootstrap(curve, nodules_per_scan.to_numpy(), bootstrap, seed) if bootstrap else None
    corners = curve.corners(scans, nodules)
    return FrocResult(counts, sensitivity, float(sensitivity.mean()), corners, interval, matches)


class _FrocCurve:
    """The events of an evaluation in the order of falling probability, ready for any weighting of the scans."""

    def __init__(self, probability: _FloatArray, is_nodule: NDArray[np.bool_], scan: NDArray[np.intp]) -> None:
        order = np.argsort(-probability, kind="stable")
        self._scan, self._is_nodule, probability = scan[order], is_nodule[order], probability[order]
        # Equal probabilities enter the curve together.
        self._ends = np.flatnonzero(np.append(np.diff(probability) != 0, True)) if len(probability) else order
        self._threshold = probability[self._ends]

    def counts(self, scan_weights: _FloatArray) -> tuple[_FloatArray, _FloatArray]:
        """Count false positives and found nodules from each threshold on, beginning with none."""
        weights = scan_weights[self._scan]
        false_positives = np.cumsum(np.where(self._is_nodule, 0.0, weights))[self._ends]
        nodules = np.cumsum(np.where(self._is_nodule, weights, 0.0))[self._ends]
        return np.insert(false_positives, 0, 0.0), np.insert(nodules, 0, 0.0)

    def corners(self, scans: int, nodules: int) -> pd.DataFrame:
        """Return the points between which the curve runs straight along an axis, or in one tied step."""
        false_positives, found = self.counts(np.ones(scans))
        new_false_positives, new_found = np.diff(false_positives) > 0, np.diff(found) > 0
        turns = (new_found[:-1] & new_false_positives[1:]) | (new_false_positives[:-1] & new_found[1:])
        columns = {
            "false_positives_per_scan": false_positives / scans,
            "sensitivity": found / nodules if nodules else np.full(len(found), np.nan),
            "threshold": np.insert(self._threshold, 0, math.inf),
        }
        return pd.DataFrame(columns)[np.concatenate([[True], turns, [True]])[: len(found)]]

    def sensitivity_at(self, rates: _FloatArray, scan_weights: _FloatArray, nodules: float) -> _FloatArray:
        """Interpolate the sensitivity at rates of false positives per scan."""
        if nodules == 0:
            return np.full(len(rates), np.nan)
        false_positives, found = self.counts(scan_weights)
        return np.interp(rates, false_positives / len(scan_weights), found / nodules)


def _bootstrap(curve: _FrocCurve, nodules_per_scan: NDArray[Any], samples: int, seed: int) -> FrocInterval:
    generator = np.random.default_rng(seed)
    scans = len(nodules_per_scan)
    drawn = np.empty((samples, len(_INTERVAL_GRID)))
    for row in drawn:
        weights = np.bincount(generator.integers(scans, size=scans), minlength=scans).astype(float)
        row[:] = curve.sensitivity_at(_INTERVAL_GRID, weights, float(weights @ nodules_per_scan))
    # Samples without any scan that has a nodule leave the sensitivity undefined.
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    if len(drawn) == 0:
        drawn = np.full((1, len(_INTERVAL_GRID)), np.nan)
    # The CPM of each sample is one more column.
    drawn = np.column_stack([drawn, drawn[:, ::_STEPS_PER_OCTAVE].mean(axis=1)])
    lower, upper = np.percentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)
    spread = pd.DataFrame({"mean": drawn.mean(axis=0), "lower": lower, "upper": upper})
    of_curve = spread.iloc[:-1]
    of_curve.insert(0, "false_positives_per_scan", _INTERVAL_GRID)
    return FrocInterval(samples, of_curve, {str(name): value for name, value in spread.iloc[-1].items()})


def rate_name(rate: float) -> str:
    """Write a rate of false positives as LUNA16 does: ``1/8``, ``4``."""
    return f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}"
