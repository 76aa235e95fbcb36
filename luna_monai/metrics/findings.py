"""Which candidates hit which findings, by LUNA16's rules; see :mod:`luna_monai.metrics.froc`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError

MAX_CANDIDATES_PER_SCAN = 100
UNKNOWN_DIAMETER_MM = 10.0

_FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FindingMatches:
    """Which candidates hit which findings.

    Attributes:
        nodules: the annotated nodules of the evaluated scans: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ``
            (world, LPS, mm), ``diameter_mm`` and ``probability``, the highest of the candidates that hit it, NaN
            where none does. Scan by scan in the order of ``seriesuids``.
        candidates: the candidates that the cap leaves: ``seriesuid``, coordinates, ``probability`` and ``outcome``,
            one of ``hit``, ``excluded`` and ``false_positive``; the index is that of the submission.
        seriesuids: the evaluated scans.
        double_detections: candidates on a nodule beyond the first, summed over nodules.
    """

    nodules: pd.DataFrame
    candidates: pd.DataFrame
    seriesuids: tuple[str, ...]
    double_detections: int


def match_findings(
    submission: pd.DataFrame, annotations: pd.DataFrame, excluded: pd.DataFrame | None, seriesuids: Sequence[str]
) -> FindingMatches:
    """Cap the candidates of each scan and match them to nodules and excluded findings, as LUNA16 does.

    Args:
        submission: see :func:`~luna_monai.metrics.froc.evaluate_froc`.
        annotations: see :func:`~luna_monai.metrics.froc.evaluate_froc`.
        excluded: see :func:`~luna_monai.metrics.froc.evaluate_froc`.
        seriesuids: see :func:`~luna_monai.metrics.froc.evaluate_froc`.

    Returns:
        Candidates with their outcome and nodules with their highest probability.

    Raises:
        LunaError: as :func:`~luna_monai.metrics.froc.evaluate_froc`.
    """
    seriesuids = tuple(seriesuids)
    check_submission(submission, seriesuids)
    kept = submission.loc[_under_cap(submission), ["seriesuid", *COORDINATES, "probability"]].copy()
    candidates = _by_scan(kept)
    nodule_rows = _by_scan(annotations)
    excluded_rows = {} if excluded is None else _by_scan(excluded)
    points = kept[COORDINATES].to_numpy(dtype=float)
    probability = kept["probability"].to_numpy(dtype=float)
    annotation_spheres = annotations[[*COORDINATES, "diameter_mm"]].to_numpy(dtype=float)
    excluded_spheres = None if excluded is None else excluded[[*COORDINATES, "diameter_mm"]].to_numpy(dtype=float)

    outcome = np.full(len(kept), "false_positive", dtype=object)
    best = np.full(len(annotations), np.nan)
    double_detections = 0
    nodule_order = []
    for seriesuid in seriesuids:
        here = candidates.get(seriesuid, np.empty(0, dtype=np.intp))
        nodules_here = nodule_rows.get(seriesuid)
        if seriesuid in excluded_rows and excluded_spheres is not None:
            hits = _hits(points[here], excluded_spheres[excluded_rows[seriesuid]])
            outcome[here[hits.any(axis=1)]] = "excluded"
        if nodules_here is not None:
            nodule_order.append(nodules_here)
            hits = _hits(points[here], annotation_spheres[nodules_here])
            # A nodule outranks an excluded finding at the same place.
            outcome[here[hits.any(axis=1)]] = "hit"
            hit_counts = hits.sum(axis=0)
            double_detections += int(np.maximum(hit_counts - 1, 0).sum())
            highest = np.where(hits, probability[here, None], -1.0).max(axis=0, initial=-1.0)
            best[nodules_here] = np.where(hit_counts > 0, highest, np.nan)

    kept["outcome"] = outcome
    order = np.concatenate(nodule_order) if nodule_order else np.empty(0, dtype=np.intp)
    nodules = annotations[["seriesuid", *COORDINATES, "diameter_mm"]].assign(probability=best).iloc[order]
    return FindingMatches(nodules, kept, seriesuids, double_detections)


def check_submission(submission: pd.DataFrame, seriesuids: Sequence[str], source: str = "submission") -> None:
    """Refuse candidates that LUNA16's evaluation cannot judge.

    Args:
        submission: see :func:`~luna_monai.metrics.froc.evaluate_froc`.
        seriesuids: see :func:`~luna_monai.metrics.froc.evaluate_froc`.
        source: what the message calls the submission, such as its file.

    Raises:
        LunaError: naming the first data row that is wrong.
    """
    if len(seriesuids) == 0:
        raise LunaError(f"{source}: no scan to evaluate, because the list of series UIDs is empty")
    missing = [name for name in ("seriesuid", *COORDINATES, "probability") if name not in submission.columns]
    if missing:
        raise LunaError(f"{source}: no column {', '.join(map(repr, missing))} (found {', '.join(submission.columns)})")
    for name in (*COORDINATES, "probability"):
        if len(submission) and not pd.api.types.is_numeric_dtype(submission[name]):
            raise LunaError(f"{source}: column {name!r} must hold numbers, found {submission[name].dtype}")
        undefined = ~np.isfinite(submission[name].to_numpy(dtype=float))
        if undefined.any():
            raise LunaError(f"{source}: {name!r} is no finite number in data row {undefined.argmax() + 1}")
    outside = ~submission["probability"].between(0.0, 1.0).to_numpy()
    if outside.any():
        row = int(outside.argmax())
        value = submission["probability"].iloc[row]
        raise LunaError(f"{source}: 'probability' must be between 0 and 1, found {value:g} in data row {row + 1}")
    unknown = ~submission["seriesuid"].isin(set(seriesuids)).to_numpy()
    if unknown.any():
        row = int(unknown.argmax())
        raise LunaError(
            f"{source}: series {submission['seriesuid'].iloc[row]!r} of data row {row + 1} is none of the "
            f"{len(seriesuids)} scans to evaluate ({unknown.sum()} such rows); remove them or extend the list of scans"
        )


def _under_cap(submission: pd.DataFrame) -> NDArray[np.bool_]:
    probability = submission["probability"].to_numpy(dtype=float)
    scan, _ = pd.factorize(submission["seriesuid"])
    counts = np.bincount(scan)
    over = counts > MAX_CANDIDATES_PER_SCAN
    descending = np.lexsort((-probability, scan))
    first_beyond = (np.cumsum(counts) - counts)[over] + MAX_CANDIDATES_PER_SCAN
    limits = np.full(len(counts), -np.inf)
    limits[over] = probability[descending[first_beyond]]
    return probability > limits[scan]


def _by_scan(table: pd.DataFrame) -> dict[str, NDArray[np.intp]]:
    indices = table.groupby("seriesuid", sort=False).indices
    return {str(seriesuid): np.asarray(rows, dtype=np.intp) for seriesuid, rows in indices.items()}


def _hits(points: _FloatArray, spheres: _FloatArray) -> NDArray[np.bool_]:
    diameter = np.where(spheres[:, 3] < 0, UNKNOWN_DIAMETER_MM, spheres[:, 3])
    x, y, z = (points[:, None, axis] - spheres[None, :, axis] for axis in range(3))
    return x * x + y * y + z * z < (diameter / 2) ** 2
