"""Thresholds for what a reader can bear: a wanted sensitivity, or false positives per scan.

Each candidate counts singly here; for LUNA16's rules, by which several candidates may lie on one nodule, see
:meth:`luna_monai.metrics.froc.FrocResult.threshold_at`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna_monai.errors import LunaError
from luna_monai.metrics.checks import checked_classes, checked_probability


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it does to the candidates on which it was chosen.

    Attributes:
        threshold: a candidate is called a nodule when its probability is strictly above it, as in the book.
        sensitivity: share of the nodule candidates that are called nodules.
        false_positives_per_scan: non-nodules that are called nodules, per scan.
        precision: share of nodules among those called nodules; None when there is none.
    """

    threshold: float
    sensitivity: float
    false_positives_per_scan: float
    precision: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Give the attributes as JSON knows them."""
        return dataclasses.asdict(self)


def operating_point(probability: ArrayLike, is_nodule: ArrayLike, scans: int, threshold: float) -> OperatingPoint:
    """Measure what a threshold does.

    Args:
        probability: of a nodule, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,).
        scans: number of scans that the candidates come from.
        threshold: candidates with a probability strictly above it are called nodules.

    Returns:
        The operating point; its sensitivity is NaN without nodules.

    Raises:
        LunaError: when a probability is undefined or outside 0..1, a class is neither 0 nor 1, or there is no scan.
    """
    probability = checked_probability(probability)
    target = checked_classes(is_nodule, probability.shape)
    if scans < 1:
        raise LunaError(f"scans must be at least 1, found {scans}")
    called = probability > threshold
    true_positives = int((called & target).sum())
    return OperatingPoint(
        threshold=float(threshold),
        sensitivity=true_positives / int(target.sum()) if target.any() else math.nan,
        false_positives_per_scan=int((called & ~target).sum()) / scans,
        precision=true_positives / int(called.sum()) if called.any() else None,
    )


def point_for_sensitivity(
    probability: ArrayLike, is_nodule: ArrayLike, scans: int, sensitivity: float
) -> OperatingPoint:
    """Find the highest threshold that calls a wanted share of the nodules.

    Args:
        probability: see :func:`operating_point`.
        is_nodule: see :func:`operating_point`.
        scans: see :func:`operating_point`.
        sensitivity: the wanted share, above 0 and at most 1.

    Returns:
        The operating point. Its threshold lies in the middle between two probabilities that occur, so that rounding
        elsewhere changes nothing; it is below 0 where even a probability of 0 must be called.

    Raises:
        LunaError: when the wanted share is impossible, there is no nodule, or as :func:`operating_point`.
    """
    values, target = checked_probability(probability), checked_classes(is_nodule, np.shape(probability))
    if not 0 < sensitivity <= 1:
        raise LunaError(f"a wanted sensitivity must be above 0 and at most 1, found {sensitivity:g}")
    if not target.any():
        raise LunaError("a threshold for a wanted sensitivity needs at least one nodule")
    nodules = np.sort(values[target])[::-1]
    # The small number keeps 0.9 of 10 nodules from becoming 10 of them by rounding.
    needed = max(math.ceil(sensitivity * len(nodules) - 1e-9), 1)
    return operating_point(values, target, scans, _threshold_below(values, nodules[needed - 1]))


def point_for_false_positives(
    probability: ArrayLike, is_nodule: ArrayLike, scans: int, false_positives_per_scan: float
) -> OperatingPoint:
    """Find the lowest threshold that keeps to a wanted number of false positives per scan.

    Args:
        probability: see :func:`operating_point`.
        is_nodule: see :func:`operating_point`.
        scans: see :func:`operating_point`.
        false_positives_per_scan: the rate that must not be exceeded.

    Returns:
        The operating point; see :func:`point_for_sensitivity` on its threshold.

    Raises:
        LunaError: when the rate is negative, or as :func:`operating_point`.
    """
    values, target = checked_probability(probability), checked_classes(is_nodule, np.shape(probability))
    if not false_positives_per_scan >= 0:
        raise LunaError(f"false positives per scan must not be negative, found {false_positives_per_scan:g}")
    if scans < 1:
        raise LunaError(f"scans must be at least 1, found {scans}")
    others = np.sort(values[~target])[::-1]
    allowed = math.floor(false_positives_per_scan * scans + 1e-9)
    if allowed >= len(others):
        lowest = values.min(initial=1.0)
        return operating_point(values, target, scans, _threshold_below(values, lowest))
    # The first one too many must not be called, nor those that tie with it.
    limit = others[allowed]
    above = values[values > limit]
    threshold = _threshold_below(values, above.min()) if len(above) else float(limit + 1) / 2
    return operating_point(values, target, scans, threshold)


def _threshold_below(values: NDArray[np.float64], value: float) -> float:
    lower = values[values < value].max(initial=0.0 if value > 0 else -1.0)
    middle = (lower + value) / 2
    return float(middle if middle < value else lower)
