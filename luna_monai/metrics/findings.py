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

_FloatArray = NDArray[np.float64]


class FindingMatches(NamedTuple):
    """Which candidates hit which findings.

    Attributes:
        nodules: the annotated nodules of the evaluated scans: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ``
            (world, LPS, mm), ``diameter_mm`` and ``probability``, the highest of the candidates that hit it, NaN
            where none does. Scan by scan in the order of ``seriesuids``.
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
    check_submission(submission, seriesuids)
    kept = submission.loc[_under_cap(submission), ["seriesuid", *COORDINATES, "probability"]]
    points, probability = kept[COORDINATES].to_numpy(dtype=float), kept["probability"].to_numpy(dtype=float)
    candidates, nodules = _by_scan(kept), _by_scan(annotations)
    outcome = np.full(len(kept), "false_positive", dtype=object)
    best = np.full(len(annotations), -np.inf)
    double_detections = 0
    # Nodules come last: a nodule outranks an excluded finding at the same place.
    for name, findings in (("excluded", annotations.iloc[:0] if excluded is None else excluded), ("hit", annotations)):
        for seriesuid, own in _by_scan(findings).items():
            here = candidates.get(seriesuid)
            if here is None:
                continue
            hits = _hits(points[here], findings.iloc[own])
            outcome[here[hits.any(axis=1)]] = name
            if name == "hit":
                double_detections += int(np.maximum(hits.sum(axis=0) - 1, 0).sum())
                best[own] = np.where(hits, probability[here, None], -np.inf).max(axis=0)
    order = np.concatenate([nodules.get(seriesuid, np.empty(0, dtype=np.intp)) for seriesuid in seriesuids])
    found = annotations[["seriesuid", *COORDINATES, "diameter_mm"]].assign(probability=best).iloc[order]
    return FindingMatches(found.replace(-np.inf, np.nan), kept.assign(outcome=outcome), double_detections)


def check_submission(submission: pd.DataFrame, seriesuids: Sequence[str], source: str = "submission") -> None:
    """Refuse candidates that LUNA16's evaluation does not allow, in a message that calls the submission ``source``.

    Raises:
        LunaError: naming the first data row that is wrong.
    """
    known = submission["seriesuid"].isin(set(seriesuids))
    probable = submission["probability"].astype(float).between(0, 1)
    rules = [("probability", probable, "between 0 and 1")]
    rules.append(("seriesuid", known, f"one of the {len(seriesuids)} scans to evaluate"))
    for name, valid, expected in rules:
        if not valid.all():
            row = int((~valid).to_numpy().argmax())
            raise LunaError(
                f"{source}: {name!r} must be {expected}, found {submission[name].iloc[row]} in data row {row + 1} "
                f"({(~valid).sum():,} such rows)"
            )


def _under_cap(submission: pd.DataFrame) -> pd.Series:
    ranked = submission.sort_values("probability", ascending=False)
    first_beyond = ranked[ranked.groupby("seriesuid").cumcount() == MAX_CANDIDATES_PER_SCAN]
    limits = submission["seriesuid"].map(first_beyond.set_index("seriesuid")["probability"])
    return submission["probability"] > limits.fillna(-np.inf)


def _by_scan(table: pd.DataFrame) -> dict[str, NDArray[np.intp]]:
    return {str(uid): np.asarray(rows) for uid, rows in table.groupby("seriesuid", sort=False).indices.items()}


def _hits(points: _FloatArray, findings: pd.DataFrame) -> NDArray[np.bool_]:
    spheres = findings[[*COORDINATES, "diameter_mm"]].to_numpy(dtype=float)
    diameter = np.where(spheres[:, 3] < 0, UNKNOWN_DIAMETER_MM, spheres[:, 3])
    x, y, z = (points[:, None, axis] - spheres[None, :, axis] for axis in range(3))
    return x * x + y * y + z * z < (diameter / 2) ** 2
