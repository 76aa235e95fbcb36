"""Where in the lungs a position is."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from luna_monai.detection.lungs import MASK_SPACING, Lungs

#: Step between the voxels of the mask that are enough to tell left from right.
COARSE = 2
#: The smaller lung is at least this part of the larger one.
SMALLER_LUNG = 0.3
#: Erosions of the coarse mask after which airways and thin lines of contact no longer join the lungs.
EROSIONS = 5


class LungPlaces:
    """Tells the side and the distance to the pleura of positions.

    Args:
        lungs: of the scan. Where none were found, nothing is told.
        closing_mm: radius of the ball that closes their surface over nodules on the pleura, mm.
    """

    def __init__(self, lungs: Lungs, closing_mm: float) -> None:
        mask = lungs.closed(closing_mm).mask
        # Where the scan cuts the lungs, there is no pleura.
        surface = np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=1))
        self._pleura = KDTree(lungs.geometry.index_to_world(surface)) if len(surface) else None
        self._sides = _separate(lungs)

    def side(self, position: np.ndarray) -> Literal["left", "right"] | None:
        """Tell in which lung a position (x, y, z) is, or which one is nearer; None where only one lung is seen."""
        if self._sides is None:
            return None
        left, right = (tree.query(position)[0] for tree in self._sides)
        return "left" if left < right else "right"

    def pleura_distance_mm(self, points: np.ndarray) -> float | None:
        """Measure the shortest distance of points (n, 3) to the surface of the lungs, mm."""
        if self._pleura is None:
            return None
        return max(0.0, float(self._pleura.query(points)[0].min()) - MASK_SPACING / 2)


def _separate(lungs: Lungs) -> tuple[KDTree, KDTree] | None:
    """Find points of the left and of the right lung."""
    coarse = lungs.mask[::COARSE, ::COARSE, ::COARSE]
    for _ in range(EROSIONS):
        labels, count = ndimage.label(coarse)
        if count > 1:
            sizes = np.bincount(labels.ravel())[1:]
            second, first = np.argsort(sizes)[-2:]
            if sizes[second] >= SMALLER_LUNG * sizes[first]:
                one, other = (
                    lungs.geometry.index_to_world(COARSE * np.argwhere(labels == 1 + label))
                    for label in (first, second)
                )
                # LPS: x grows towards the patient's left.
                left, right = (one, other) if one[:, 0].mean() > other[:, 0].mean() else (other, one)
                return KDTree(left), KDTree(right)
        coarse = ndimage.binary_erosion(coarse, border_value=1)
    return None
