"""Which candidates hit which findings, by LUNA16's rules; see :mod:`luna_monai.metrics.froc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError

MAX_CANDIDATES_PER_SCAN = 100
UNKNOWN_DIAMETER_MM = 10.0


class FindingMatches(NamedTuple):
    """Which candidates hit which findings.

    Attributes:
        nodules: the annotated nodules of the evaluated scans: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ``
            (world, LPS, mm), ``diameter_mm`` and ``probability``, the highest of the candidates that hit it, NaN
            where none does.
        candidates: the candidates that the cap leaves: ``seriesuid``, coordinates, ``probability`` and ``outcome``,
            one of ``hit``, ``excluded`` and ``false_positive``; the index is that of the submission.
        double_detections: candidates on a nodule beyond the first, summed over nodules.
    """

    nodules: pd.DataFrame
    candidates: pd.DataFrame
    double_detections: int


def match_findings(
    submission: pd.DataFrame, annotations: pd.DataFrame, excluded: pd.DataFrame | None, seriesuids: Sequence[str]
) -> FindingMatches:
    """Cap the candidates of each scan and match them to nodules and excluded findings, as LUNA16 does.

    Arguments and errors are those of :func:`~luna_monai.metrics.froc.evaluate_froc`.

    Returns:
        Candidates with their outcome and nodules with their highest probability.
    """
    wrong = ~(submission["seriesuid"].isin(seriesuids) & submission["probability"].between(0, 1))
    if wrong.any():
        number = int(wrong.to_numpy().argmax())
        uid, value = submission[["seriesuid", "probability"]].iloc[number]
        rule = f"expected a probability from 0 to 1 in one of the {len(seriesuids)} scans to evaluate"
        raise LunaError(
            f"submission: {rule}, found {value} in {uid} in data row {number + 1} ({wrong.sum():,} such rows)"
        )
    # The number of candidates at least as probable is that of the cap at most.
    rank = submission.groupby("seriesuid")["probability"].rank(ascending=False, method="max")
    kept = submission.loc[rank <= MAX_CANDIDATES_PER_SCAN, ["seriesuid", *COORDINATES, "probability"]]
    points, probability = kept[COORDINATES].to_numpy(dtype=float), kept["probability"].to_numpy(dtype=float)
    candidates = kept.groupby("seriesuid").indices
    outcome = np.full(len(kept), "false_positive", dtype=object)
    best = np.full(len(annotations), np.nan)
    double_detections = 0
    # Nodules come last: a nodule outranks an excluded finding at the same place.
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
