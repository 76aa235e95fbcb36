"""Thresholds for a wanted sensitivity, or for a number of false positives per scan.

Each candidate is counted singly here; for LUNA16's rules, by which several candidates may lie on one nodule, see
:meth:`luna_monai.metrics.froc.FrocResult.threshold_at`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN

SENSITIVITIES = (0.8, 0.9, 0.95, 0.99)


def operating_points(probability: ArrayLike, is_nodule: ArrayLike, scans: int) -> pd.DataFrame:
    """Find the highest threshold for each sensitivity, and the lowest that keeps to each rate of false positives.

    Args:
        probability: of a nodule, from 0 to 1, shape (n,).
        is_nodule: the class, 0 or 1, shape (n,); both occur.
        scans: number of scans that the candidates come from.

    Returns:
        A row for each of ``SENSITIVITIES`` and of ``FALSE_POSITIVES_PER_SCAN``: ``kind`` (``sensitivity`` or
        ``false_positives_per_scan``) and ``wanted``; ``threshold``, strictly above which a candidate is called a
        nodule, as in the book; and ``sensitivity``, ``false_positives_per_scan`` and ``precision`` (NaN where no
        candidate is called) of these candidates. A threshold lies in the middle between two probabilities that occur,
        so that rounding elsewhere changes nothing; it is below 0 where even a probability of 0 must be called.
    """
    from sklearn.metrics import roc_curve  # prediction imports this module, and has no use for scikit-learn

    values, target = np.asarray(probability, dtype=float), np.asarray(is_nodule, dtype=bool)
    false_share, sensitivity, upper = roc_curve(target, values, drop_intermediate=False)
    true, false = np.rint(sensitivity * target.sum()), np.rint(false_share * (~target).sum())
    # Row k calls the k highest of the different probabilities; the outer neighbors are 1 and 0, or below 0.
    upper[0] = 1.0
    lower = np.append(upper[1:], 0.0 if upper[-1] > 0 else -1.0)
    middle = (lower + upper) / 2
    table = pd.DataFrame(
        {
            "threshold": np.where(middle < upper, middle, lower),  # neighboring floating-point numbers have no middle
            "sensitivity": sensitivity,
            "false_positives_per_scan": false / scans,
            "precision": pd.Series(true) / pd.Series(true + false),
        }
    )
    # The small number keeps 0.9 of 10 nodules from becoming 10 of them by rounding.
    rows = [int(np.argmax(sensitivity >= wanted - 1e-9)) for wanted in SENSITIVITIES]
    rows += (np.searchsorted(false, np.multiply(FALSE_POSITIVES_PER_SCAN, scans) + 1e-9, side="right") - 1).tolist()
    kinds = ["sensitivity"] * len(SENSITIVITIES) + ["false_positives_per_scan"] * len(FALSE_POSITIVES_PER_SCAN)
    return table.iloc[rows].assign(kind=kinds, wanted=[*SENSITIVITIES, *FALSE_POSITIVES_PER_SCAN])
