"""Where the lungs are, and whether a scan is one of the chest at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from luna_monai.detection.grid import grid_at, interpolate, isotropic_grid, resample
from luna_monai.scans.geometry import Geometry

#: A scan of the chest has air below this, HU.
CHEST_AIR_HU = -500
#: Less lung than this, in ml and as a part of the body, is what a scan of the abdomen or the neck shows of it.
SMALL_LUNGS_ML, SMALL_LUNGS_SHARE = 800, 0.08
#: Nobody breathes in more than this, ml.
LARGE_LUNGS_ML = 12_000
#: Less soft tissue than this part of a scan is no patient, unless the scan shows nothing but lung.
LITTLE_TISSUE = 0.02
#: Voxels of the lung mask, mm and ml.
MASK_SPACING, VOXEL_ML = 2.0, 0.008
#: Radius of the ball that closes the surface of the lungs over nodules on the pleura, voxels of the mask.
CLOSING = 6
#: Below this, a voxel holds more air than tissue, HU.
AIRY_HU = -320
#: Below this, averaged over a voxel of the mask, there is no lung but padding, HU.
PADDING_HU = -1010
#: Median of a lung, HU: the lowest, the same for what touches the sides of the scan, where the room is the likelier
#: explanation, and the highest. Bowel gas and the air of the room are below, foam of the table is hardly ever inside.
LUNG_MEDIAN_HU = (-970, -945, -450)
#: A part of the lungs is at least this part of the largest one, and this large in ml.
SMALLEST_PART, SMALLEST_ML = 0.03, 0.5
#: Smaller pockets of air are mostly bronchi.
SMALLEST_CAVITY_ML = 0.1
#: Denser than this is soft tissue or bone, HU.
TISSUE_HU = -200
#: Holes in axial slices that are filled whatever they hold: up to the section of a nodule of 35 mm.
HOLE_MM2 = 1000
#: Step between the voxels of the mask that are enough to tell left from right.
COARSE = 2
#: The smaller lung is at least this part of the larger one.
SMALLER_LUNG = 0.3
#: Erosions of the coarse mask after which airways and thin lines of contact no longer join the lungs.
EROSIONS = 5

BoolArray = NDArray[np.bool_]
_IN_SLICE = np.array([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a scan.

    Attributes:
        hu: int16 (z, y, x), the scan on a grid of 2 mm.
        airy: bool (z, y, x), the voxels of the lungs that hold more air than tissue; none where there are no lungs.
        geometry: of the voxels of both.
    """

    hu: NDArray[np.int16]
    airy: BoolArray
    geometry: Geometry

    @cached_property
    def mask(self) -> BoolArray:
        """The lungs with small vessels and nodules inside them: holes of axial slices that reach no edge are filled."""
        labels, _ = ndimage.label(~self.airy, _IN_SLICE)
        holes = np.bincount(labels.ravel()) * MASK_SPACING**2 <= HOLE_MM2
        holes[0] = False
        holes[_at_sides(labels)] = False
        return np.asarray(self.airy | holes[labels])

    @cached_property
    def closed(self) -> BoolArray:
        """The mask closed by a ball, with nodules on the pleura and vessels at the hilum; everything without lungs."""
        if not self.airy.any():
            return np.ones_like(self.mask)
        result, margin = self.mask.copy(), CLOSING + 1
        (box,) = ndimage.find_objects(self.mask.astype(np.uint8))
        # By distances: the ball costs nothing, whatever its size.
        dilated = distance(np.pad(self.mask[box], margin)) <= CLOSING
        result[box] |= (distance(~dilated) > CLOSING)[margin:-margin, margin:-margin, margin:-margin]
        return result

    def fine_grid(self) -> tuple[Geometry, BoolArray]:
        """Halve the voxels of the mask in a box around the lungs, which must not be empty.

        Returns:
            The grid, and which of its voxels are in the closed lungs.
        """
        (box,) = ndimage.find_objects(self.closed.astype(np.uint8))
        inside = self.closed[box].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        first = np.array([part.start - 0.25 for part in box])
        return grid_at(self.geometry, first, inside.shape, MASK_SPACING / 2), inside

    def shares_at(self, grid: Geometry) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Interpolate the closed lungs, and the cavities in them, on a grid along the same axes: shares from 0 to 1."""
        first = self.geometry.world_to_continuous_index(np.array([grid.origin]))[0]
        steps = np.array(grid.spacing[::-1]) / MASK_SPACING
        closed, cavities = (interpolate(mask, first, steps, grid.shape) for mask in (self.closed, self.cavities))
        return closed, cavities

    def pleura_distance_mm(self, points: np.ndarray) -> float | None:
        """Measure the shortest distance of points (n, 3) to the surface of the lungs, mm; None without a surface."""
        if self._surface is None:
            return None
        # The search of all points ends where a few of them are nearer.
        bound = self._surface.query(points[::20])[0].min() + 1e-6
        return max(0.0, float(self._surface.query(points, distance_upper_bound=bound)[0].min()) - MASK_SPACING / 2)

    def side(self, position: np.ndarray) -> str | None:
        """Tell in which lung a position (x, y, z) is, or which one is nearer; None where only one lung is seen."""
        if self._sides is None:
            return None
        right, left = (tree.query(position)[0] for tree in self._sides)
        return "left" if left < right else "right"

    @cached_property
    def cavities(self) -> BoolArray:
        """Air inside the lungs that is surrounded by tissue, up to its wall."""
        labels, _ = ndimage.label((self.hu < AIRY_HU) & (self.hu > PADDING_HU) & ~self.airy)
        chosen = np.bincount(labels.ravel()) * VOXEL_ML >= SMALLEST_CAVITY_ML
        chosen[0] = False
        chosen[labels[~self.closed]] = False
        return np.asarray(ndimage.binary_dilation(chosen[labels]))

    @cached_property
    def _surface(self) -> KDTree | None:
        # Where the scan cuts the lungs, there is no pleura.
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
                # LPS: x grows towards the patient's left.
                return [KDTree(lung) for lung in sorted(lungs, key=lambda points: float(points[:, 0].mean()))]
            coarse = ndimage.binary_erosion(coarse, border_value=1)
        return None


def find_lungs(volume: np.ndarray, geometry: Geometry) -> Lungs:
    """Segment the lungs by threshold, connected regions and morphology.

    Regions below ``AIRY_HU`` are lungs when they are about as dense as lungs, and not air around the body or gas in
    the bowel. Small holes in axial slices are filled (vessels, nodules). A scan that shows a part of a lung, up to its
    faces, works as well.

    Args:
        volume: HU (z, y, x), whole numbers or floats, turned to LPS.
        geometry: of the scan.

    Returns:
        The lungs; the mask is empty when there are none.
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
    """Say that a scan does not look like a CT of the chest.

    Contrast agent, metal, padding of any value below air, and scans that show a part of the lungs are no reason for a
    warning.

    Args:
        volume: HU (z, y, x), finite numbers, turned to LPS.
        geometry: of the scan.
        lungs: what :func:`find_lungs` found in it; looked for when None.

    Returns:
        A sentence; none for a CT of the chest.
    """
    lungs = lungs or find_lungs(volume, geometry)
    lung_ml, tissue = VOXEL_ML * float(lungs.airy.sum()), float(np.mean(lungs.hu > TISSUE_HU))
    body = lungs.hu.size - int(np.sum(~lungs.airy & (lungs.hu < AIRY_HU)))
    share = float(lungs.airy.sum()) / max(body, 1)
    if (
        lungs.hu.min() > CHEST_AIR_HU
        or (tissue < LITTLE_TISSUE and lungs.airy.mean() < 0.5)
        or (lung_ml < SMALL_LUNGS_ML and share < SMALL_LUNGS_SHARE)
        or lung_ml > LARGE_LUNGS_ML
    ):
        return (
            f"The scan does not seem to show the chest, or its values are not Hounsfield units (stored without rescale "
            f"slope and intercept?): {lung_ml:.0f} ml of lung, {share:.1%} of the body; {tissue:.1%} soft tissue and "
            f"bone; values from {volume.min():g} to {volume.max():g}.",
        )
    return ()


def distance(mask: np.ndarray) -> np.ndarray:
    """Distance of the voxels outside a mask from it, voxels; ITK's takes a fraction of SciPy's time and memory."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False))


def _at_sides(labels: np.ndarray) -> NDArray[np.intp]:
    """Find the regions at the four faces beside the body; lungs may be cut by the upper and the lower face."""
    return np.unique(np.concatenate([labels.take((0, -1), axis=axis).ravel() for axis in (1, 2)]))
