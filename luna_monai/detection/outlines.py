"""Outlines of small structures in the lungs, on the voxels of the scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.detection.lungs import Lungs
from luna_monai.scans.geometry import Geometry

#: Half the edge of the box in which a structure is outlined, mm.
REACH_MM = 20.0


@dataclass(frozen=True, eq=False)
class Outline:
    """Which voxels of a scan belong to a structure.

    Attributes:
        mask: bool (z, y, x), a box around the structure.
        start: index (z, y, x) of its first voxel in the scan.
        spacing: of the voxels, z, y, x in mm.
    """

    mask: NDArray[np.bool_]
    start: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def box(self) -> tuple[slice, ...]:
        """Slices z, y, x of the box in the scan."""
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.mask.shape, strict=True))

    def distance_mm(self, index: np.ndarray) -> float:
        """Distance of a position (z, y, x indices of the scan) from the nearest voxel of the structure, mm."""
        offsets = (np.argwhere(self.mask) + self.start - index) * self.spacing
        return float(np.sqrt(np.einsum("ij,ij->i", offsets, offsets).min()))

    def overlaps(self, other: Outline) -> bool:
        """Tell whether two outlines share a third of the smaller one."""
        own, theirs = [], []
        for a, b, m, n in zip(self.start, other.start, self.mask.shape, other.mask.shape, strict=True):
            low, high = max(a, b), min(a + m, b + n)
            if low >= high:
                return False
            own.append(slice(low - a, high - a))
            theirs.append(slice(low - b, high - b))
        common = (self.mask[tuple(own)] & other.mask[tuple(theirs)]).sum()
        return bool(common * 3 >= min(self.mask.sum(), other.mask.sum()))


def find_outline(voxels: np.ndarray, geometry: Geometry, index: np.ndarray, lungs: Lungs | None) -> Outline | None:
    """Outline the structure at a position of a scan.

    Args:
        voxels: HU (z, y, x).
        geometry: of the scan.
        index: the position, z, y, x, which may be fractions.
        lungs: of the scan.

    Returns:
        The outline; None where no structure stands out.
    """
    spacing = geometry.spacing[::-1]
    seed = np.clip(np.rint(index), 0, np.array(voxels.shape) - 1).astype(int)
    reach = np.ceil(REACH_MM / np.array(spacing)).astype(int)
    low, high = np.maximum(seed - reach, 0), np.minimum(seed + reach + 1, voxels.shape)
    hu = np.clip(voxels[tuple(map(slice, low, high))], -1000, 200).astype(np.float32)
    smooth = ndimage.gaussian_filter(hu, 0.7 / np.array(spacing))
    at = tuple(seed - low)
    threshold = (float(np.percentile(hu, 20)) + float(smooth[at])) / 2
    labels, _ = ndimage.label(smooth > threshold)
    if labels[at] == 0 or smooth[at] < -700:
        return None
    mask = ndimage.binary_fill_holes(labels == labels[at])
    if mask is None or any(face.any() for axis in range(3) for face in (mask.take(0, axis), mask.take(-1, axis))):
        return None
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    z, y, x = (int(a + part.start) for a, part in zip(low, box, strict=True))
    return Outline(mask[box], (z, y, x), (spacing[0], spacing[1], spacing[2]))
