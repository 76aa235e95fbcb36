"""Where the lungs are, and whether a scan is one of the chest at all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.detection.grid import resample_isotropic
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
#: Denser than this is soft tissue or bone, HU.
TISSUE_HU = -200
#: Holes in axial slices that are filled whatever they hold: up to the section of a nodule of 35 mm.
HOLE_MM2 = 1000.0


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a scan.

    Attributes:
        mask: bool (z, y, x), the lungs with small vessels and nodules inside them.
        geometry: of the mask's voxels.
        volume_ml: of the airy part, ml.
        median_hu: of the airy part, HU; NaN when there are no lungs.
        share_of_body: the airy part as a part of everything that is not the air around the body, 0 to 1.
        share_of_scan: the airy part as a part of the whole scan, 0 to 1.
        tissue_share: soft tissue and bone as a part of the whole scan, 0 to 1.
    """

    mask: NDArray[np.bool_]
    geometry: Geometry
    volume_ml: float
    median_hu: float
    share_of_body: float
    share_of_scan: float
    tissue_share: float
    _closed: dict[float, Lungs] = field(default_factory=dict, init=False, repr=False)

    def closed(self, radius_mm: float) -> Lungs:
        """Close the mask with a ball, which takes in the nodules on the pleura and the vessels at the hilum.

        Args:
            radius_mm: of the ball, mm.

        Returns:
            The lungs with dents of their surface filled; the same object for the same radius.
        """
        if radius_mm not in self._closed:
            self._closed[radius_mm] = replace(self, mask=_close(self.mask, radius_mm)) if self.mask.any() else self
        return self._closed[radius_mm]

    def box_in(self, geometry: Geometry) -> tuple[slice, slice, slice]:
        """Find the box around the lungs among the voxels of the scan.

        Args:
            geometry: of the scan that the lungs were found in.

        Returns:
            Slices z, y, x, with a margin of a voxel of the mask where the scan has it.
        """
        (box,) = ndimage.find_objects(self.mask.astype(np.uint8))
        corners = np.array([[part.start - 1 for part in box], [part.stop for part in box]])
        found = geometry.world_to_continuous_index(self.geometry.index_to_world(corners))
        # Rounded inwards, and to the same voxels whichever way an axis runs.
        z, y, x = (
            slice(max(0, int(np.ceil(low - 1e-3))), min(size, int(np.floor(high + 1e-3)) + 1))
            for low, high, size in zip(found.min(axis=0), found.max(axis=0), geometry.shape, strict=True)
        )
        return z, y, x

    def inside(self, grid: Geometry) -> NDArray[np.bool_]:
        """Tell which voxels of another grid along the same axes are inside the lungs.

        Args:
            grid: the other grid, isotropic.

        Returns:
            bool (z, y, x).
        """
        inside = np.empty(grid.shape, dtype=bool)
        for start in range(0, len(inside), 32):
            part = inside[start : start + 32]
            part[...] = self.share_at(grid.index_to_world(np.array([[start, 0, 0]])), part.shape, grid.spacing[0]) > 0.5
        return inside

    def share_at(self, first: np.ndarray, shape: tuple[int, ...], spacing: float) -> NDArray[np.float32]:
        """Interpolate the mask on an isotropic grid along the same axes.

        Args:
            first: (1, 3) position of the grid's first voxel, x, y, z in LPS mm.
            shape: of the grid, z, y, x.
            spacing: of the grid, mm.

        Returns:
            Shares of lung (z, y, x), 0 to 1; 1 everywhere when there are no lungs.
        """
        if not self.mask.size or not self.volume_ml:
            return np.ones(shape, dtype=np.float32)
        start = self.geometry.world_to_continuous_index(first)[0]
        steps = spacing / np.array(self.geometry.spacing[::-1])
        low = np.clip(np.floor(start), 0, np.array(self.mask.shape) - 1).astype(int)
        high = np.clip(np.ceil(start + steps * shape) + 1, low + 1, self.mask.shape).astype(int)
        part = self.mask[tuple(map(slice, low, high))].astype(np.float32)
        return np.asarray(
            ndimage.affine_transform(
                part, np.diag(steps), offset=start - low, output_shape=shape, order=1, mode="nearest"
            )
        )


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
    hu, grid = resample_isotropic(volume, geometry, MASK_SPACING)
    airy = (hu < AIRY_HU) & (hu > PADDING_HU)
    labels, count = ndimage.label(airy)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    voxel_ml = MASK_SPACING**3 / 1000
    sides = _labels_at_sides(labels, grid)
    large = np.flatnonzero(sizes * voxel_ml >= SMALLEST_ML)
    boxes = ndimage.find_objects(labels)
    kept = []
    for label in large[large > 0]:
        low, high = LUNG_MEDIAN_AT_SIDES_HU if label in sides else LUNG_MEDIAN_HU
        box = boxes[label - 1]
        if low <= np.median(hu[box][labels[box] == label]) <= high:
            kept.append(int(label))
    largest = max((sizes[label] for label in kept), default=0)
    chosen = np.zeros(count + 1, dtype=bool)
    chosen[[label for label in kept if sizes[label] >= SMALLEST_PART * largest]] = True
    airy_lungs = chosen[labels]
    voxels = int(airy_lungs.sum())
    room = ~airy_lungs & (hu < AIRY_HU)
    body = hu.size - int(room.sum())
    return Lungs(
        mask=_fill_holes(airy_lungs, grid) if voxels else airy_lungs,
        geometry=grid,
        volume_ml=voxels * voxel_ml,
        median_hu=float(np.median(hu[airy_lungs])) if voxels else float("nan"),
        share_of_body=voxels / body if body else 0.0,
        share_of_scan=voxels / hu.size,
        tissue_share=float(np.mean(hu > TISSUE_HU)),
    )


def chest_warnings(volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> tuple[str, ...]:
    """Say what is wrong with a scan that does not look like a CT of the chest.

    Contrast agent, metal, padding of any value below air, and scans that show a part of the lungs are no reason for a
    warning.

    Args:
        volume: HU (z, y, x), whole numbers or floats.
        geometry: of the scan.
        lungs: what :func:`find_lungs` found in it; looked for when None.

    Returns:
        A sentence for each thing that was found; none for a CT of the chest.
    """
    finite = volume[np.isfinite(volume)] if volume.dtype.kind == "f" else volume
    if finite.size == 0:
        return ("No voxel has a value: the scan is empty.",)
    lowest, highest = float(finite.min()), float(finite.max())
    if lowest == highest:
        return (f"All voxels have the value {lowest:g}: the scan is empty.",)
    warnings = []
    if finite.size < volume.size:
        warnings.append(f"{volume.size - finite.size} voxels are not finite numbers; they are taken for air.")
    if lowest > CHEST_AIR_HU:
        warnings.append(
            f"The values go from {lowest:g} to {highest:g}, and air would be below {CHEST_AIR_HU} HU: the scan does "
            "not seem to show the chest, or its values are not Hounsfield units (was it stored without its rescale "
            "slope and intercept?)."
        )
        return tuple(warnings)
    lungs = lungs or find_lungs(volume, geometry)
    if lungs.tissue_share < LITTLE_TISSUE and lungs.share_of_scan < 0.5:
        warnings.append(
            f"Only {lungs.tissue_share:.1%} of the scan is soft tissue or bone (above {TISSUE_HU} HU): there seems to "
            "be no patient in it, or the values are not Hounsfield units."
        )
    elif not lungs.mask.any():
        warnings.append("No lungs were found: the scan does not seem to show the chest.")
    elif lungs.volume_ml < SMALL_LUNGS_ML and lungs.share_of_body < SMALL_LUNGS_SHARE:
        warnings.append(
            f"Only {lungs.volume_ml:.0f} ml of lung were found, {lungs.share_of_body:.1%} of the body in the scan: it "
            "does not seem to show the chest."
        )
    elif lungs.volume_ml > LARGE_LUNGS_ML:
        warnings.append(
            f"The lungs seem to hold {lungs.volume_ml / 1000:.1f} litres, more than a person's do: the spacing or the "
            "values may be wrong, or the scan does not show the chest."
        )
    return tuple(warnings)


def body_axis(geometry: Geometry) -> int:
    """Which axis of the array (z, y, x) runs along the body: the one nearest to superior-inferior."""
    return 2 - int(np.argmax(np.abs(np.asarray(geometry.direction)[2])))


def _labels_at_sides(labels: np.ndarray, geometry: Geometry) -> set[int]:
    """Find the regions at the four faces beside the body; lungs may be cut by the upper and the lower face."""
    found: set[int] = set()
    for axis in {0, 1, 2} - {body_axis(geometry)}:
        for face in (0, -1):
            found |= set(np.unique(labels.take(face, axis=axis)).tolist())
    return found


def _fill_holes(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Fill the small holes of each slice across the body."""
    axis = body_axis(geometry)
    in_slice = ndimage.generate_binary_structure(3, 1)
    in_slice[tuple(slice(None, None, 2) if d == axis else slice(None) for d in range(3))] = False
    labels, count = ndimage.label(~mask, in_slice)
    areas = np.bincount(labels.ravel(), minlength=count + 1) * MASK_SPACING**2
    holes = areas <= HOLE_MM2
    holes[0] = False
    # What reaches the edge of the slice is no hole.
    for side in {0, 1, 2} - {axis}:
        for face in (0, -1):
            holes[np.unique(labels.take(face, axis=side))] = False
    return mask | holes[labels]


def _close(mask: np.ndarray, radius_mm: float) -> np.ndarray:
    """Close a mask with a ball, by distances: the ball costs nothing, whatever its size."""
    reach = radius_mm / MASK_SPACING
    margin = int(np.ceil(reach)) + 1
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    inside = np.pad(mask[box], margin)
    dilated = _distance(inside) <= reach
    closed = _distance(~dilated) > reach
    result = mask.copy()
    result[box] |= closed[margin:-margin, margin:-margin, margin:-margin]
    return result


def _distance(mask: np.ndarray) -> np.ndarray:
    """Distance of the voxels outside a mask from it, voxels; ITK's takes a fraction of SciPy's time and memory."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=False))
