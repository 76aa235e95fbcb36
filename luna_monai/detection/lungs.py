"""Where the lungs are, and whether a scan is one of the chest at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

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
SMALL_LUNGS_ML, SMALL_LUNGS_SHARE = 800.0, 0.08
#: Nobody breathes in more than this, ml.
LARGE_LUNGS_ML = 12_000.0
#: Less soft tissue than this part of a scan is no patient, unless the scan shows nothing but lung.
LITTLE_TISSUE = 0.02
#: Voxels of the lung mask, mm.
MASK_SPACING = 2.0
#: Radius of the ball that closes the surface of the lungs over nodules on the pleura, mm.
CLOSING_MM = 12.0
#: Below this, a voxel holds more air than tissue, HU.
AIRY_HU = -320
#: Below this, averaged over a voxel of the mask, there is no lung but padding, HU.
PADDING_HU = -1010
#: Median of a lung, HU; bowel gas and the air of the room are below, foam of the table is hardly ever inside.
LUNG_MEDIAN_HU = (-970.0, -450.0)
#: The same for what touches the sides of the scan, where the room is the likelier explanation.
LUNG_MEDIAN_AT_SIDES_HU = (-945.0, -450.0)
#: A part of the lungs is at least this part of the largest one.
SMALLEST_PART = 0.03
SMALLEST_ML = 0.5
#: Smaller pockets of air are mostly bronchi.
SMALLEST_CAVITY_ML = 0.1
#: Denser than this is soft tissue or bone, HU.
TISSUE_HU = -200
#: Holes in axial slices that are filled whatever they hold: up to the section of a nodule of 35 mm.
HOLE_MM2 = 1000.0
#: Step between the voxels of the mask that are enough to tell left from right.
COARSE = 2
#: The smaller lung is at least this part of the larger one.
SMALLER_LUNG = 0.3
#: Erosions of the coarse mask after which airways and thin lines of contact no longer join the lungs.
EROSIONS = 5

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a scan.

    Attributes:
        mask: bool (z, y, x), the lungs with small vessels and nodules inside them.
        gas: bool (z, y, x), everything as airy that is not lung.
        geometry: of the voxels of both.
        volume_ml: of the airy part, ml.
        median_hu: of the airy part, HU; NaN when there are no lungs.
        share_of_body: the airy part as a part of everything that is not the air around the body, 0 to 1.
        share_of_scan: the airy part as a part of the whole scan, 0 to 1.
        tissue_share: soft tissue and bone as a part of the whole scan, 0 to 1.
    """

    mask: BoolArray
    gas: BoolArray
    geometry: Geometry
    volume_ml: float
    median_hu: float
    share_of_body: float
    share_of_scan: float
    tissue_share: float

    @cached_property
    def closed(self) -> BoolArray:
        """The mask closed by a ball, with nodules on the pleura and vessels at the hilum; everything without lungs."""
        if not self.volume_ml:
            return np.ones_like(self.mask)
        result = self.mask.copy()
        reach = CLOSING_MM / MASK_SPACING
        margin = int(np.ceil(reach)) + 1
        for box in ndimage.find_objects(self.mask.astype(np.uint8)):
            # By distances: the ball costs nothing, whatever its size.
            dilated = _distance(np.pad(self.mask[box], margin)) <= reach
            result[box] |= (_distance(~dilated) > reach)[margin:-margin, margin:-margin, margin:-margin]
        return result

    @cached_property
    def cavities(self) -> BoolArray:
        """Air inside the lungs that is surrounded by tissue, up to its wall."""
        labels, _ = ndimage.label(self.gas)
        sizes = np.bincount(labels.ravel())
        chosen = sizes * MASK_SPACING**3 / 1000 >= SMALLEST_CAVITY_ML
        chosen[0] = False
        chosen[labels[~self.closed]] = False
        return np.asarray(ndimage.binary_dilation(chosen[labels]))

    def fine_grid(self) -> tuple[Geometry, BoolArray]:
        """Halve the voxels of the mask in a box around the lungs, which must not be empty.

        Returns:
            The grid, and which of its voxels are in the closed lungs.
        """
        (box,) = ndimage.find_objects(self.closed.astype(np.uint8))
        inside = self.closed[box]
        for axis in range(3):
            inside = inside.repeat(2, axis=axis)
        first = np.array([part.start - 0.25 for part in box])
        return grid_at(self.geometry, first, inside.shape[::-1], MASK_SPACING / 2), inside

    def share_at(
        self, mask: BoolArray, first: np.ndarray, shape: tuple[int, ...], spacing: float
    ) -> NDArray[np.float32]:
        """Interpolate a mask of the lungs on an isotropic grid along the same axes.

        Args:
            mask: ``closed`` or ``cavities``.
            first: (1, 3) position of the grid's first voxel, x, y, z in LPS mm.
            shape: of the grid, z, y, x.
            spacing: of the grid, mm.

        Returns:
            Shares of the mask (z, y, x), 0 to 1.
        """
        start = self.geometry.world_to_continuous_index(first)[0]
        step = spacing / MASK_SPACING
        low = np.clip(np.floor(start), 0, np.array(self.mask.shape) - 1).astype(int)
        high = np.clip(np.ceil(start + step * np.array(shape)) + 1, low + 1, self.mask.shape).astype(int)
        part = mask[tuple(map(slice, low, high))].astype(np.float32)
        if part.min() == part.max():
            return np.full(shape, part.flat[0])
        return interpolate(part, start - low, np.full(3, step), shape)

    def pleura_distance_mm(self, points: np.ndarray) -> float | None:
        """Measure the shortest distance of points (n, 3) to the surface of the lungs, mm; None without a surface."""
        if self._surface is None:
            return None
        return max(0.0, float(self._surface.query(points)[0].min()) - MASK_SPACING / 2)

    def side(self, position: np.ndarray) -> Literal["left", "right"] | None:
        """Tell in which lung a position (x, y, z) is, or which one is nearer; None where only one lung is seen."""
        if self._sides is None:
            return None
        left, right = (tree.query(position)[0] for tree in self._sides)
        return "left" if left < right else "right"

    @cached_property
    def _surface(self) -> KDTree | None:
        # Where the scan cuts the lungs, there is no pleura.
        surface = np.argwhere(self.closed & ~ndimage.binary_erosion(self.closed, border_value=1))
        return KDTree(self.geometry.index_to_world(surface)) if len(surface) else None

    @cached_property
    def _sides(self) -> tuple[KDTree, KDTree] | None:
        coarse = self.mask[::COARSE, ::COARSE, ::COARSE]
        for _ in range(EROSIONS):
            labels, count = ndimage.label(coarse)
            sizes = np.bincount(labels.ravel(), minlength=3)[1:]
            second, first = np.argsort(sizes)[-2:]
            if count > 1 and sizes[second] >= SMALLER_LUNG * sizes[first]:
                lungs = [self.geometry.index_to_world(COARSE * np.argwhere(labels == 1 + k)) for k in (first, second)]
                # LPS: x grows towards the patient's left.
                right, left = sorted(lungs, key=lambda points: float(points[:, 0].mean()))
                return KDTree(left), KDTree(right)
            coarse = ndimage.binary_erosion(coarse, border_value=1)
        return None


def find_lungs(volume: np.ndarray, geometry: Geometry) -> Lungs:
    """Segment the lungs by threshold, connected regions and morphology.

    Regions below ``AIRY_HU`` are lungs when they are about as dense as lungs, and not air around the body or gas in
    the bowel. Small holes in axial slices are filled (vessels, nodules). A scan that shows a part of a lung, up to its
    faces, works as well.

    Args:
        volume: HU (z, y, x), whole numbers or floats.
        geometry: of the scan.

    Returns:
        The lungs; the mask is empty when there are none.
    """
    grid = isotropic_grid(geometry, MASK_SPACING)
    hu = resample(volume, geometry, grid)
    airy = (hu < AIRY_HU) & (hu > PADDING_HU)
    labels, count = ndimage.label(airy)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    voxel_ml = MASK_SPACING**3 / 1000
    at_sides, boxes = _labels_at_sides(labels, grid), ndimage.find_objects(labels)
    chosen = np.zeros(count + 1, dtype=bool)
    for label in np.flatnonzero(sizes * voxel_ml >= SMALLEST_ML):
        box = boxes[label - 1]
        low, high = LUNG_MEDIAN_AT_SIDES_HU if label in at_sides else LUNG_MEDIAN_HU
        chosen[label] = low <= np.median(hu[box][labels[box] == label]) <= high
    chosen &= sizes >= SMALLEST_PART * sizes[chosen].max(initial=0)
    lungs = chosen[labels]
    voxels = int(lungs.sum())
    body = hu.size - int(np.sum(~lungs & (hu < AIRY_HU)))
    return Lungs(
        mask=_fill_holes(lungs, grid) if voxels else lungs,
        gas=airy & ~lungs,
        geometry=grid,
        volume_ml=voxels * voxel_ml,
        median_hu=float(np.median(hu[lungs])) if voxels else float("nan"),
        share_of_body=voxels / body if body else 0.0,
        share_of_scan=voxels / hu.size,
        tissue_share=float(np.mean(hu > TISSUE_HU)),
    )


def chest_warnings(volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> tuple[str, ...]:
    """Say what is wrong with a scan that does not look like a CT of the chest.

    Contrast agent, metal, padding of any value below air, and scans that show a part of the lungs are no reason for a
    warning.

    Args:
        volume: HU (z, y, x), finite numbers.
        geometry: of the scan.
        lungs: what :func:`find_lungs` found in it; looked for when None.

    Returns:
        A sentence; none for a CT of the chest.
    """
    lowest, highest = float(volume.min()), float(volume.max())
    if lowest == highest:
        return (f"All voxels have the value {lowest:g}: the scan is empty.",)
    if lowest > CHEST_AIR_HU:
        return (
            f"The values go from {lowest:g} to {highest:g}, and air would be below {CHEST_AIR_HU} HU: the scan does "
            "not seem to show the chest, or its values are not Hounsfield units (was it stored without its rescale "
            "slope and intercept?).",
        )
    lungs = lungs or find_lungs(volume, geometry)
    if lungs.tissue_share < LITTLE_TISSUE and lungs.share_of_scan < 0.5:
        return (
            f"Only {lungs.tissue_share:.1%} of the scan is soft tissue or bone (above {TISSUE_HU} HU): there seems to "
            "be no patient in it, or the values are not Hounsfield units.",
        )
    if lungs.volume_ml < SMALL_LUNGS_ML and lungs.share_of_body < SMALL_LUNGS_SHARE:
        return (
            f"Only {lungs.volume_ml:.0f} ml of lung were found, {lungs.share_of_body:.1%} of the body in the scan: it "
            "does not seem to show the chest.",
        )
    if lungs.volume_ml > LARGE_LUNGS_ML:
        return (
            f"The lungs seem to hold {lungs.volume_ml / 1000:.1f} liters, more than a person's do: the spacing or the "
            "values may be wrong, or the scan does not show the chest.",
        )
    return ()


def body_axis(geometry: Geometry) -> int:
    """Which axis of the array (z, y, x) runs along the body: the one nearest to superior-inferior."""
    return 2 - int(np.argmax(np.abs(np.asarray(geometry.direction)[2])))


def _labels_at_sides(labels: np.ndarray, geometry: Geometry) -> NDArray[np.intp]:
    """Find the regions at the four faces beside the body; lungs may be cut by the upper and the lower face."""
    sides = {0, 1, 2} - {body_axis(geometry)}
    return np.unique(np.concatenate([labels.take((0, -1), axis=axis).ravel() for axis in sides]))


def _fill_holes(mask: BoolArray, geometry: Geometry) -> BoolArray:
    """Fill the small holes of each slice across the body; what reaches the edge of the slice is no hole."""
    in_slice = ndimage.generate_binary_structure(3, 1)
    np.moveaxis(in_slice, body_axis(geometry), 0)[::2] = False
    labels, _ = ndimage.label(~mask, in_slice)
    holes = np.bincount(labels.ravel()) * MASK_SPACING**2 <= HOLE_MM2
    holes[0] = False
    holes[_labels_at_sides(labels, geometry)] = False
    return np.asarray(mask | holes[labels])


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance of the voxels outside a mask from it, voxels; ITK's takes a fraction of SciPy's time and memory."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False))
