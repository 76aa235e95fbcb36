"""Lung segmentation, and a check whether a scan shows the chest."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from luna_monai.detection.grid import grid_at, interpolate, isotropic_grid, resample
from luna_monai.scans.geometry import Geometry

#: A scan of the chest contains values below this, HU.
CHEST_AIR_HU = -500
#: Scans of the abdomen or the neck show less lung than this, in ml and as a fraction of the body.
SMALL_LUNGS_ML, SMALL_LUNGS_FRACTION = 800, 0.08
#: Largest plausible volume of the lungs, ml.
LARGE_LUNGS_ML = 12_000
#: Smallest fraction of soft tissue and bone in a scan of a patient, unless the scan shows only lung.
LITTLE_TISSUE = 0.02
#: Spacing of the lung mask, mm, and volume of its voxels, ml.
MASK_SPACING, VOXEL_ML = 2.0, 0.008
#: Radius of the morphological closing that includes nodules on the pleura, voxels of the mask.
CLOSING = 6
#: Voxels below this contain more air than tissue, HU.
AIRY_HU = -320
#: Voxels of the mask whose mean is below this are padding, HU.
PADDING_HU = -1010
#: Range of the median of a lung, HU: lower limit, lower limit for regions that touch the sides of the scan, and upper
#: limit. Bowel gas and the air around the patient are below the range. Foam of the table is rarely inside.
LUNG_MEDIAN_HU = (-970, -945, -450)
#: Smallest size of a part of the lungs, as a fraction of the largest part and in ml.
SMALLEST_PART, SMALLEST_ML = 0.03, 0.5
#: Smallest volume of a cavity, ml. Smaller pockets of air are mostly bronchi.
SMALLEST_CAVITY_ML = 0.1
#: Voxels above this are soft tissue or bone, HU.
TISSUE_HU = -200
#: Largest hole in an axial slice that is filled, mm2: the cross-section of a nodule of 35 mm.
HOLE_MM2 = 1000
#: Subsampling factor of the mask that separates left and right.
COARSE = 2
#: Smallest size of the smaller lung, as a fraction of the larger lung.
SMALLER_LUNG = 0.3
#: Largest number of erosions of the coarse mask, which remove airways and thin bridges between the lungs.
EROSIONS = 5

BoolArray = NDArray[np.bool_]
_IN_SLICE = np.array([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a scan.

    Attributes:
        hu: the scan on a grid of 2 mm, int16 (z, y, x).
        airy: the voxels of the lungs that contain more air than tissue, bool (z, y, x); all False without lungs.
        geometry: geometry of ``hu`` and ``airy``.
    """

    hu: NDArray[np.int16]
    airy: BoolArray
    geometry: Geometry

    @cached_property
    def mask(self) -> BoolArray:
        """The lungs including small vessels and nodules: small holes in axial slices are filled, except at edges."""
        labels, _ = ndimage.label(~self.airy, _IN_SLICE)
        holes = np.bincount(labels.ravel()) * MASK_SPACING**2 <= HOLE_MM2
        holes[0] = False
        holes[_at_sides(labels)] = False
        return np.asarray(self.airy | holes[labels])

    @cached_property
    def closed(self) -> BoolArray:
        """The mask after closing, with nodules on the pleura and hilar vessels; all True without lungs."""
        if not self.airy.any():
            return np.ones_like(self.mask)
        result, margin = self.mask.copy(), CLOSING + 1
        (box,) = ndimage.find_objects(self.mask.astype(np.uint8))
        outside = ~_dilated(np.pad(self.mask[box], margin), CLOSING)
        result[box] |= ~_dilated(outside, CLOSING)[margin:-margin, margin:-margin, margin:-margin]
        return result

    def fine_grid(self) -> tuple[Geometry, BoolArray]:
        """Make a grid of 1 mm in a box around the lungs, which must not be empty.

        Returns:
            The geometry of the grid, and the mask of the closed lungs on it, bool (z, y, x).
        """
        (box,) = ndimage.find_objects(self.closed.astype(np.uint8))
        inside = self.closed[box].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        first = np.array([part.start - 0.25 for part in box])
        return grid_at(self.geometry, first, inside.shape, MASK_SPACING / 2), inside

    def shares_at(self, grid: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Interpolate the closed lungs, and the cavities in them, on a parallel grid, as fractions from 0 to 1."""
        first = self.geometry.world_to_continuous_index(np.array([grid.origin]))[0]
        steps = np.array(grid.spacing[::-1]) / MASK_SPACING
        closed, cavities = (interpolate(mask, first, steps, grid.shape) for mask in (self.closed, self.cavities))
        return closed, cavities

    def pleura_distance_mm(self, points: np.ndarray) -> float | None:
        """Return the shortest distance of points (n, 3) to the surface of the lungs, mm; None without a surface."""
        if self._surface is None:
            return None
        # The distance of a few points limits the search for all points.
        bound = self._surface.query(points[::20])[0].min() + 1e-6
        return max(0.0, float(self._surface.query(points, distance_upper_bound=bound)[0].min()) - MASK_SPACING / 2)

    def side(self, position: np.ndarray) -> str | None:
        """Return the lung nearest to a position (x, y, z), ``left`` or ``right``; None if only one lung is visible."""
        if self._sides is None:
            return None
        right, left = (tree.query(position)[0] for tree in self._sides)
        return "left" if left < right else "right"

    @cached_property
    def cavities(self) -> BoolArray:
        """Air inside the lungs that is surrounded by tissue, dilated to the wall of the cavity."""
        labels, _ = ndimage.label((self.hu < AIRY_HU) & (self.hu > PADDING_HU) & ~self.airy)
        chosen = np.bincount(labels.ravel()) * VOXEL_ML >= SMALLEST_CAVITY_ML
        chosen[0] = False
        chosen[labels[~self.closed]] = False
        return np.asarray(ndimage.binary_dilation(chosen[labels]))

    @cached_property
    def _surface(self) -> KDTree | None:
        # The faces of the scan, where it cuts the lungs, are not pleura.
        surface = np.argwhere(self.closed & ~ndimage.binary_erosion(self.closed, border_value=1))
        return KDTree(self.geometry.index_to_world(surface)) if len(surface) else None

    @cached_property
    def _sides(self) -> list[KDTree] | None:
        coarse = self.mask[::COARSE, ::COARSE, ::COARSE]
        for _ in range(EROSIONS):
            labels, _ = ndimage.label(coarse)
            sizes = np.bincount(labels.ravel(), minlength=3)[1:]
            second, first = np.argsort(sizes)[-2:]
            if sizes[second] >= max(1, SMALLER_LUNG * sizes[first]):
                lungs = [self.geometry.index_to_world(COARSE * np.argwhere(labels == 1 + k)) for k in (first, second)]
                lungs.sort(key=lambda points: float(points[:, 0].mean()))
                right, left = (points.mean(axis=0) for points in lungs)  # LPS: x increases towards the patient's left
                if np.abs(left - right).argmax() == 0:  # else they are parts of one lung
                    return [KDTree(lung) for lung in lungs]
            coarse = ndimage.binary_erosion(coarse, border_value=1)
        return None


def find_lungs(volume: np.ndarray, geometry: Geometry) -> Lungs:
    """Segment the lungs by threshold, connected regions and morphology.

    Connected regions below ``AIRY_HU`` are lung if their median is that of a lung, not that of bowel gas or of the air
    around the body. Scans that show only a part of a lung are supported.

    Args:
        volume: HU (z, y, x), integers or floats, oriented to LPS.
        geometry: geometry of the scan.

    Returns:
        The lungs. The mask is empty if there are none.
    """
    grid = isotropic_grid(geometry, MASK_SPACING)
    hu = resample(volume, geometry, grid)
    labels, _ = ndimage.label((hu < AIRY_HU) & (hu > PADDING_HU))
    sizes, boxes = np.bincount(labels.ravel()), ndimage.find_objects(labels)
    sizes[0] = 0
    chosen, at_sides = np.zeros(len(sizes), dtype=bool), _at_sides(labels)
    lowest, lowest_at_sides, highest = LUNG_MEDIAN_HU
    for label in np.flatnonzero(sizes * VOXEL_ML >= SMALLEST_ML):
        box = boxes[label - 1]
        median = np.median(hu[box][labels[box] == label])
        chosen[label] = (lowest_at_sides if label in at_sides else lowest) <= median <= highest
    chosen &= sizes >= SMALLEST_PART * sizes[chosen].max(initial=0)
    return Lungs(hu, chosen[labels], grid)


def chest_warnings(volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> tuple[str, ...]:
    """Make a warning if a scan does not look like a CT of the chest.

    Contrast agent, metal, padding with any value below air, and scans that show only a part of the lungs do not cause a
    warning.

    Args:
        volume: HU (z, y, x), finite numbers, oriented to LPS.
        geometry: geometry of the scan.
        lungs: result of :func:`find_lungs` for the scan; None to compute it.

    Returns:
        The warning as the only item; empty for a CT of the chest.
    """
    lungs = lungs or find_lungs(volume, geometry)
    lung_ml, tissue = VOXEL_ML * float(lungs.airy.sum()), float(np.mean(lungs.hu > TISSUE_HU))
    fraction = float(lungs.airy.sum()) / max(lungs.hu.size - int(np.sum(~lungs.airy & (lungs.hu < AIRY_HU))), 1)
    if (
        lungs.hu.min() > CHEST_AIR_HU
        or (tissue < LITTLE_TISSUE and lungs.airy.mean() < 0.5)
        or (lung_ml < SMALL_LUNGS_ML and fraction < SMALL_LUNGS_FRACTION)
        or lung_ml > LARGE_LUNGS_ML
    ):
        return (
            f"The scan does not seem to show the chest, or its values are not Hounsfield units (stored without rescale "
            f"slope and intercept?): {lung_ml:.0f} ml of lung, {fraction:.1%} of the body; {tissue:.1%} soft tissue "
            f"and bone; values from {volume.min():g} to {volume.max():g}.",
        )
    return ()


def _dilated(mask: BoolArray, radius: int) -> BoolArray:
    """Dilate by a ball of a radius up to 11; as exact as a distance map, and several times as fast."""
    # Squared distances to the mask, axis by axis, as 8-bit integers; larger ones than the square of the radius are cut.
    squared = np.where(mask, np.uint8(0), np.uint8(255 - radius**2))
    for axis in range(3):
        source, target = np.moveaxis(squared.copy(), axis, 0), np.moveaxis(squared, axis, 0)
        for shift in range(1, radius + 1):
            shifted = source + np.uint8(shift**2)
            np.minimum(target[shift:], shifted[:-shift], out=target[shift:])
            np.minimum(target[:-shift], shifted[shift:], out=target[:-shift])
    return squared <= radius**2


def _at_sides(labels: np.ndarray) -> NDArray[np.intp]:
    """Find the labels at the left, right, front and back faces. The lungs may touch the upper and lower faces."""
    return np.unique(np.concatenate([labels.take((0, -1), axis=axis).ravel() for axis in (1, 2)]))
