"""LUNA16's evaluation: free-response ROC, sensitivity at seven false-positive rates, and their mean, the CPM.

The rules are those of the challenge's official evaluation script (Setio et al. 2017,
https://doi.org/10.1016/j.media.2017.06.015; https://luna16.grand-challenge.org/Evaluation/):

* At most 100 candidates per scan count. If a submission has more, only those with a probability strictly above the
  101st highest are kept, so ties at the limit leave fewer than 100.
* A candidate hits a finding if the squared distance of their centers is strictly below the squared radius. A finding
  with a negative diameter, which LUNA16 uses for unknown diameters, has a diameter of 10 mm.
* If several candidates hit the same nodule, the highest probability counts; the other candidates are ignored.
* Candidates that hit an excluded finding and no nodule are ignored.
* A nodule that no candidate hits is a false negative at every threshold.
* The number of false positives is divided by the number of all evaluated scans, with or without candidates.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_monai.data import subset_of
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError

#: False positives per scan at which LUNA16 measures the sensitivity. The CPM is the mean of these sensitivities.
FALSE_POSITIVES_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
MAX_BOOTSTRAP = 100_000
#: Fraction of the bootstrap samples inside the interval.
CONFIDENCE = 0.95

MAX_CANDIDATES_PER_SCAN = 100
UNKNOWN_DIAMETER_MM = 10.0

_FloatArray = NDArray[np.float64]


class FindingMatches(NamedTuple):
    """Which candidates hit which findings.

    Attributes:
        nodules: the annotated nodules of the evaluated scans: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ``
            (world, LPS, mm), ``diameter_mm`` and ``probability``, the highest of the candidates that hit the nodule,
            or NaN if none does.
        candidates: the candidates within the limit per scan: ``seriesuid``, coordinates, ``probability`` and
            ``outcome``, one of ``hit``, ``excluded`` and ``false_positive``; the index is that of the submission.
        double_detections: number of candidates on a nodule beyond the first, summed over nodules.
    """

    nodules: pd.DataFrame
    candidates: pd.DataFrame
    double_detections: int


@dataclass(frozen=True, eq=False)
class FrocResult:
    """LUNA16's evaluation of one submission.

    Attributes:
        counts: ``scans``, evaluated scans; ``total_number_of_nodules`` in them; ``total_number_of_candidates`` within
            the limit per scan; ``true_positives``, nodules that at least one candidate hits, and ``false_negatives``,
            all other nodules; ``false_positives``, candidates that hit no finding;
            ``ignored_candidates_on_excluded_findings``; and ``ignored_double_detections`` on a nodule.
        sensitivity: at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan, shape (7,); NaN without nodules.
        cpm: mean of these sensitivities, LUNA16's score.
        curve: the corners of the FROC curve, in increasing order: ``false_positives_per_scan``, ``sensitivity`` and
            ``threshold``, the lowest probability that is positive; the first is infinite.
        interval: ``mean``, ``lower`` and ``upper`` end of the 95 % interval over bootstrap samples of scans, drawn with
            replacement, with a row for the sensitivity at each of the seven rates and a row ``cpm``; None if it was
            not requested.
        samples: number of bootstrap samples.
    """

    counts: dict[str, int]
    sensitivity: _FloatArray
    cpm: float
    curve: pd.DataFrame
    interval: pd.DataFrame | None
    samples: int

    @property
    def scans(self) -> int:
        """Number of scans evaluated."""
        return self.counts["scans"]

    @property
    def nodules(self) -> int:
        """Number of annotated nodules in the evaluated scans."""
        return self.counts["total_number_of_nodules"]

    def summary(self) -> str:
        """Return one line with the sensitivity at 1 and 4 false positives per scan and the CPM."""
        if not self.nodules:
            return f"no annotated nodule in {self.scans} scans"
        at_1, at_4 = (self.sensitivity[FALSE_POSITIVES_PER_SCAN.index(rate)] for rate in (1, 4))
        text = (
            f"{self.nodules} nodules in {self.scans} scans, sensitivity {at_1:.3f} at 1 and {at_4:.3f} at 4 false "
            f"positives per scan, CPM {self.cpm:.4f}"
        )
        if self.interval is not None:
            text += " ({} interval {lower:.4f} to {upper:.4f})".format(f"{CONFIDENCE:.0%}", **self.interval.loc["cpm"])
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the result as content for :func:`luna_monai.files.write_json`."""
        result = {
            **self.counts,
            "average_number_of_candidates_per_scan": self.counts["total_number_of_candidates"] / self.scans,
            "false_positives_per_scan": list(FALSE_POSITIVES_PER_SCAN),
            "sensitivity": self.sensitivity.tolist(),
            "cpm": self.cpm,
            "curve": self.curve.to_dict("list"),
        }
        if self.interval is not None:
            points = self.interval.drop("cpm").add_prefix("sensitivity_").to_dict("list")
            settings = {"samples": self.samples, "confidence": CONFIDENCE}
            result["bootstrap"] = {**settings, **points, **self.interval.loc["cpm"].add_prefix("cpm_")}
        return result


def check_bootstrap(samples: int) -> None:
    """Raise a :class:`LunaError` if a number of bootstrap samples is negative or would not fit into memory."""
    if not 0 <= samples <= MAX_BOOTSTRAP:
        raise LunaError(f"bootstrap samples must be between 0 and {MAX_BOOTSTRAP:,}, found {samples:,}")


def evaluated_scans(validated: Iterable[str], candidates: Iterable[str], scans: Mapping[str, Path]) -> list[str]:
    """List the scans of an evaluation, including those without candidates.

    Args:
        validated: series UIDs of the validation candidates.
        candidates: series UIDs of all candidates of the dataset.
        scans: the CT files on disk, by series UID.

    Returns:
        The series UIDs, sorted: validated scans, and scans without any candidate in LUNA16 subsets of whose other scans
        at least half are validated. With a table of patients, a few scans of a subset belong to another fold.
    """
    chosen = set(validated)
    used = chosen.union(candidates)
    here, of_all = (Counter(subset_of(scans[uid]) for uid in uids if uid in scans) for uids in (chosen, used))
    whole = {subset for subset, count in here.items() if 2 * count >= of_all[subset]}
    return sorted(chosen | {uid for uid in scans.keys() - used if subset_of(scans[uid]) in whole})


def evaluate_froc(
    submission: pd.DataFrame,
    annotations: pd.DataFrame,
    excluded: pd.DataFrame | None,
    seriesuids: Sequence[str],
    *,
    bootstrap: int = 0,
) -> FrocResult:
    """Evaluate candidates as LUNA16 does.

    Args:
        submission: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm) and ``probability``.
        annotations: the nodules: ``seriesuid``, coordinates and ``diameter_mm``. Nodules of scans that are not in
            ``seriesuids`` are ignored.
        excluded: findings on which candidates are ignored, with the same columns; None for no such findings.
        seriesuids: the scans to evaluate.
        bootstrap: number of bootstrap samples of scans; 0 for no interval.

    Returns:
        Counts, sensitivities, CPM, curve and interval.

    Raises:
        LunaError: when a probability is NaN or outside [0, 1], the scan of a candidate is not in ``seriesuids``, or
            more than 100,000 bootstrap samples are requested.
    """
    check_bootstrap(bootstrap)
    matches = match_findings(submission, annotations, excluded, seriesuids)
    uids, outcomes = pd.Index(dict.fromkeys(seriesuids)), matches.candidates["outcome"]
    scans, nodules = len(uids), len(matches.nodules)
    found, wrong = matches.nodules.dropna(subset="probability"), matches.candidates[outcomes == "false_positive"]
    nodules_of_scan = matches.nodules["seriesuid"].value_counts().reindex(uids, fill_value=0).to_numpy()

    # Found nodules and false positives by descending probability; equal probabilities are one step of the curve.
    probability = np.concatenate([found["probability"], wrong["probability"]]).astype(float)
    order = np.argsort(-probability, kind="stable")
    probability, is_nodule = probability[order], order < len(found)
    scan = uids.get_indexer(pd.Index([*found["seriesuid"], *wrong["seriesuid"]], dtype=uids.dtype))[order]
    ends = np.flatnonzero(np.diff(probability, append=-1))

    def counts(weights: _FloatArray) -> tuple[_FloatArray, _FloatArray]:
        """Count false positives and found nodules at each threshold, from the highest on, with weighted scans."""
        each = (np.cumsum(np.where(mask, weights[scan], 0.0))[ends] for mask in (~is_nodule, is_nodule))
        false_positives, hits = (np.insert(values, 0, 0.0) for values in each)
        return false_positives, hits

    def sensitivity_of(weights: _FloatArray) -> _FloatArray:
        (false_positives, hits), total = counts(weights), weights @ nodules_of_scan
        if total == 0:
            return np.full(len(FALSE_POSITIVES_PER_SCAN), np.nan)
        return np.interp(FALSE_POSITIVES_PER_SCAN, false_positives / scans, hits / total)

    sensitivity = sensitivity_of(np.ones(scans))
    summary = {
        "scans": scans,
        "total_number_of_nodules": nodules,
        "total_number_of_candidates": len(outcomes),
        "true_positives": len(found),
        "false_negatives": nodules - len(found),
        "false_positives": len(wrong),
        "ignored_candidates_on_excluded_findings": int((outcomes == "excluded").sum()),
        "ignored_double_detections": matches.double_detections,
    }
    curve = _corners(*counts(np.ones(scans)), np.insert(probability[ends], 0, math.inf), scans, nodules)
    interval = _bootstrap(sensitivity_of, scans, bootstrap) if bootstrap else None
    return FrocResult(summary, sensitivity, float(sensitivity.mean()), curve, interval, bootstrap)


def _corners(
    false_positives: _FloatArray, found: _FloatArray, threshold: _FloatArray, scans: int, nodules: int
) -> pd.DataFrame:
    """Keep the corners of a curve, and drop the points between them on horizontal and vertical lines."""
    right, up = np.diff(false_positives) > 0, np.diff(found) > 0
    turns = (up[:-1] & right[1:]) | (right[:-1] & up[1:])
    columns = {
        "false_positives_per_scan": false_positives / scans,
        "sensitivity": found / nodules if nodules else np.full(len(found), np.nan),
        "threshold": threshold,
    }
    return pd.DataFrame(columns)[np.concatenate([[True], turns, [True]])[: len(found)]]


def _bootstrap(sensitivity_of: Callable[[_FloatArray], _FloatArray], scans: int, samples: int) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    drawn = (np.bincount(generator.integers(scans, size=scans), minlength=scans) for _ in range(samples))
    table = pd.DataFrame([sensitivity_of(weights.astype(float)) for weights in drawn], columns=FALSE_POSITIVES_PER_SCAN)
    # The sensitivity is undefined in samples in which no scan has a nodule.
    table = table.dropna().assign(cpm=lambda values: values.mean(axis=1))
    lower, upper = (table.quantile(0.5 + side * CONFIDENCE / 2) for side in (-1, 1))
    return pd.DataFrame({"mean": table.mean(), "lower": lower, "upper": upper})


def rate_name(rate: float) -> str:
    """Format a false-positive rate as LUNA16 does: ``1/8``, ``4``."""
    return f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}"


def match_findings(
    submission: pd.DataFrame, annotations: pd.DataFrame, excluded: pd.DataFrame | None, seriesuids: Sequence[str]
) -> FindingMatches:
    """Limit the candidates of each scan, and match them to nodules and excluded findings, as LUNA16 does.

    Arguments and errors are those of :func:`evaluate_froc`.

    Returns:
        Candidates with their outcome, and nodules with their highest probability.
    """
    wrong = ~(submission["seriesuid"].isin(seriesuids) & submission["probability"].between(0, 1))
    if wrong.any():
        number = int(wrong.to_numpy().argmax())
        uid, value = submission[["seriesuid", "probability"]].iloc[number]
        rule = f"expected a probability from 0 to 1 in one of the {len(seriesuids)} scans to evaluate"
        raise LunaError(f"{rule}, found {value} in {uid} in data row {number + 1} ({wrong.sum():,} such rows)")
    # The rank is the number of candidates that are at least as probable.
    rank = submission.groupby("seriesuid")["probability"].rank(ascending=False, method="max")
    kept = submission.loc[rank <= MAX_CANDIDATES_PER_SCAN, ["seriesuid", *COORDINATES, "probability"]]
    points, probability = kept[COORDINATES].to_numpy(dtype=float), kept["probability"].to_numpy(dtype=float)
    candidates = kept.groupby("seriesuid").indices
    outcome = np.full(len(kept), "false_positive", dtype=object)
    best = np.full(len(annotations), np.nan)
    double_detections = 0
    # Nodules come last, because a nodule takes precedence over an excluded finding at the same position.
    for name, findings in (("excluded", annotations.iloc[:0] if excluded is None else excluded), ("hit", annotations)):
        for seriesuid, own in findings.groupby("seriesuid").indices.items():
            here = np.asarray(candidates.get(seriesuid, []), dtype=int)
            hits = _hits(points[here], findings.iloc[own])
            outcome[here[hits.any(axis=1)]] = name
            if name == "hit" and len(here):
                double_detections += int(np.maximum(hits.sum(axis=0) - 1, 0).sum())
                best[own] = np.where(hits, probability[here, None], -np.inf).max(axis=0)
    nodules = annotations[["seriesuid", *COORDINATES, "diameter_mm"]].assign(probability=best).replace(-np.inf, np.nan)
    evaluated = nodules[nodules["seriesuid"].isin(seriesuids)]
    return FindingMatches(evaluated, kept.assign(outcome=outcome), double_detections)


def _hits(points: NDArray[np.float64], findings: pd.DataFrame) -> NDArray[np.bool_]:
    centers, diameter = findings[COORDINATES].to_numpy(dtype=float), findings["diameter_mm"].to_numpy(dtype=float)
    radius = np.where(diameter < 0, UNKNOWN_DIAMETER_MM, diameter) / 2
    return ((points[:, None] - centers) ** 2).sum(axis=2) < radius**2
