"""Input that every metric on probabilities and classes needs to be right."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luna_monai.errors import LunaError


def checked_probability(probability: ArrayLike) -> NDArray[np.float64]:
    """Return probabilities as float64, or raise a LunaError naming one that is undefined or outside 0..1."""
    values = np.asarray(probability, dtype=float)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise LunaError(f"a probability must be between 0 and 1, found {values[wrong].flat[0]}")
    return values


def checked_classes(is_nodule: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return classes as bool, or raise a LunaError when one is neither 0 nor 1 or their shape is not ``shape``."""
    classes = np.asarray(is_nodule)
    if classes.shape != shape or not np.isin(classes, [0, 1]).all():
        found = f"shape {classes.shape}" if classes.shape != shape else classes[~np.isin(classes, [0, 1])].flat[0]
        raise LunaError(f"there must be one class for each candidate, shape {shape}, 0 or 1, found {found}")
    return classes.astype(bool)
