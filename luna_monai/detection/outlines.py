"""Outlines of small structures in the lungs, on the voxels of the scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from luna_monai.detection.grid import interpolate
from luna_monai.detection.lungs import Lungs
from luna_monai.scans.geometry import Geometry

#: Boxes in which a structure is looked for, one after the other until it fits: half of the edge and the grid, mm.
BOXES = ((12.0, 1.0), (24.0, 1.5), (40.0, 2.5))
#: Higher values count as this, so that calcium and bone do not raise the threshold, HU.
HIGHEST_HU = 100.0
#: Air in a cavity counts as this, HU.
CAVITY_AS_HU = 0.0
#: The background is the median of the lung below this, HU.
LUNG_HU = -500.0
#: Fewer voxels of such lung in a box say nothing about the background.
MIN_LUNG_VOXELS = 50
#: A structure is denser than the background by this at least, HU.
MIN_CONTRAST = 120.0
#: Standard deviation of the smoothing, mm.
SMOOTHING_MM = 0.5
#: How far from the candidate the densest point is looked for; the wall of a cavity needs the second try, mm.
CORE_MM = (2.5, 5.0)
#: The candidate may be this far outside of the outline, mm.
SEED_MM = 2.5
#: Thresholds between background (0) and densest point (1): the edge of a structure, and of a halo around it.
EDGE, HALO = 0.45, 0.17
#: A halo adds this to the radius; blur adds less, mm.
HALO_MM = 1.5
#: Radius of the ball that opens a region, as a part of its largest inscribed ball; the next one where the result leaks.
OPENINGS = (0.5, 0.65, 0.8)
#: A result of more volume than this, in inscribed balls, is a vessel or has leaked into one.
MAX_BALLS = 10.0
#: Voxels of the scan belong to the outline from the first share of the grid's mask on, from the second if dense.
SHARE, SHARE_OF_DENSE = 0.85, 0.25
#: Parts of a voxel of the lung mask that count as lung: half of a voxel more than its border.
LUNG_SHARE = 0.3

BoolArray = NDArray[np.bool_]
_BALL = ndimage.generate_binary_structure(3, 2)


@dataclass(frozen=True, eq=False)
class Outline:
    """Which voxels of a scan belong to a structure.

    Attributes:
        mask: bool (z, y, x), a box around the structure.
        start: index (z, y, x) of its first voxel in the scan.
        spacing: of the voxels, z, y, x in mm.
    """

    mask: BoolArray
    start: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def box(self) -> tuple[slice, ...]:
        """Slices z, y, x of the box in the scan."""
        return tuple(slice(start, start + size) for start, size in zip(self.start, self.mask.shape, strict=True))

    def near(self, indices: np.ndarray, margin_mm: float) -> BoolArray:
        """Tell which positions (n, 3; z, y, x indices of the scan) are in the structure or this near to it."""
        places, last = (indices - self.start) * self.spacing, np.multiply(np.array(self.mask.shape) - 1, self.spacing)
        result = np.all((places >= -margin_mm) & (places <= last + margin_mm), axis=1)
        result[result] = cdist(places[result], np.argwhere(self.mask) * self.spacing).min(axis=1) <= margin_mm
        return result

    def overlaps(self, other: Outline) -> bool:
        """Tell whether two outlines share a third of the smaller one."""
        low = np.maximum(self.start, other.start)
        high = np.minimum(np.add(self.start, self.mask.shape), np.add(other.start, other.mask.shape))
        if (low >= high).any():
            return False
        own, theirs = (one.mask[tuple(map(slice, low - one.start, high - one.start))] for one in (self, other))
        return bool(3 * (own & theirs).sum() >= min(self.mask.sum(), other.mask.sum()))


def find_outline(voxels: np.ndarray, geometry: Geometry, index: np.ndarray, lungs: Lungs) -> Outline | None:
    """Outline the structure at a position of a scan.

    The region around the densest point near the position that is above a threshold halfway between this point and the
    lung around it, with cavities filled, is opened by a ball of half the radius of the largest ball inside it: vessels
    and remains of the pleura are thinner. The size of the ball adapted to the structure is that of Kuhnigk et al.,
    "Morphological segmentation and partial volume analysis for volumetry of solid pulmonary lesions in thoracic CT
    scans" (IEEE Transactions on Medical Imaging 25, 2006). Where a lower threshold adds more than blur would, the
    structure has a halo of ground glass, which belongs to it.

    Args:
        voxels: HU (z, y, x).
        geometry: of the scan.
        index: the position, z, y, x, which may be fractions.
        lungs: of the scan; an empty mask restricts nothing.

    Returns:
        The outline; None where no compact structure stands out.
    """
    for reach_mm, step_mm in BOXES:
        box = _Box(voxels, geometry, index, lungs, reach_mm, step_mm)
        around = box.hu[box.lung & (box.hu < LUNG_HU)]
        if around.size < MIN_LUNG_VOXELS:
            continue  # a large structure fills the box
        mask, lowest_hu = box.segment(float(np.median(around)))
        if mask is None:
            return None
        if not box.cuts(mask):
            return box.on_scan(mask, lowest_hu, geometry)
    return None


class _Box:
    """The surroundings of a position: the voxels of the scan, and an isotropic grid on them."""

    def __init__(
        self, voxels: np.ndarray, geometry: Geometry, index: np.ndarray, lungs: Lungs, reach_mm: float, step_mm: float
    ) -> None:
        spacing, size = np.array(geometry.spacing[::-1]), np.array(voxels.shape)
        self.low = np.clip(np.floor(index - reach_mm / spacing), 0, size - 1).astype(int)
        high = np.clip(np.ceil(index + reach_mm / spacing) + 1, self.low + 1, size).astype(int)
        self.faces_inside = (self.low > 0, high < size)
        hu = np.clip(voxels[tuple(map(slice, self.low, high))], -1000, HIGHEST_HU).astype(np.float32)
        self.fine = ndimage.gaussian_filter(hu, SMOOTHING_MM / spacing, mode="nearest")
        self.step_mm, self.scale = step_mm, spacing / step_mm
        shape = tuple(np.floor((high - self.low - 1) * self.scale + 1.01).astype(int))
        self.hu = interpolate(self.fine, np.zeros(3), 1 / self.scale, shape)
        self.seed = np.clip(np.rint((index - self.low) * self.scale), 0, np.array(shape) - 1).astype(int)
        first = geometry.index_to_world(self.low[None])
        self.lung = lungs.share_at(lungs.closed, first, shape, step_mm) > LUNG_SHARE
        # A cavity counts as soft tissue, so that its wall is one structure even if the box cuts it.
        cavity = lungs.share_at(lungs.cavities, first, shape, step_mm) > 0.5
        self.hu[cavity] = np.maximum(self.hu[cavity], CAVITY_AS_HU)

    def segment(self, background: float) -> tuple[BoolArray | None, float]:
        """Find the structure on the grid, and the lowest HU that belong to it, given the HU of the lung around it."""
        tried = np.empty(0)
        for reach_mm in CORE_MM:
            near = _around(self.seed, reach_mm / self.step_mm, self.hu.shape)
            near = near[self.lung[tuple(near.T)]]
            if len(near) == 0:
                continue
            core = near[np.argmax(self.hu[tuple(near.T)])]
            contrast = float(self.hu[tuple(core)]) - background
            if contrast < MIN_CONTRAST or np.array_equal(core, tried):
                continue
            tried = core
            lowest_hu = background + EDGE * contrast
            mask = _opened(self._region(lowest_hu, core), core)
            if mask is None:
                continue
            if self.cuts(mask):
                return mask, lowest_hu  # a larger box is needed
            halo_hu = background + max(HALO * contrast, MIN_CONTRAST / 2)
            halo = _opened(self._region(halo_hu, core), core)
            if halo is not None and (_radius(halo) - _radius(mask)) * self.step_mm > HALO_MM:
                mask, lowest_hu = halo, halo_hu
            away = np.linalg.norm(np.argwhere(mask) - self.seed, axis=1).min()
            if away * self.step_mm <= SEED_MM:
                return mask, lowest_hu
        return None, 0.0

    def cuts(self, mask: BoolArray) -> bool:
        """Tell whether a structure reaches a face of the box that is not one of the scan."""
        inner = tuple(
            slice(int(low), size - int(high)) for low, high, size in zip(*self.faces_inside, mask.shape, strict=True)
        )
        return bool(mask.any() and mask[inner].sum() < mask.sum())

    def on_scan(self, mask: BoolArray, lowest_hu: float, geometry: Geometry) -> Outline | None:
        """Bring a mask to the voxels of the scan, which decide where exactly the edge is."""
        share = interpolate(mask.astype(np.float32), np.zeros(3), self.scale, self.fine.shape)
        fine = (share > SHARE) | ((share > SHARE_OF_DENSE) & (self.fine > lowest_hu))
        if not fine.any():
            return None
        part = _box_of(fine)
        z, y, x = (int(low + one.start) for low, one in zip(self.low, part, strict=True))
        sx, sy, sz = geometry.spacing
        return Outline(fine[part].copy(), (z, y, x), (sz, sy, sx))

    def _region(self, lowest_hu: float, at: np.ndarray) -> BoolArray:
        """Find the connected region above a threshold, with the cavities inside it, even if their wall has gaps."""
        labels, _ = ndimage.label(self.lung & (self.hu > lowest_hu))
        whole = labels == labels[tuple(at)]
        part = _box_of(whole)
        region = np.pad(whole[part], 2)
        closed = ndimage.binary_erosion(ndimage.binary_dilation(region, _BALL), _BALL)
        cavity = _fill_holes(closed) & ~closed
        if cavity.any():
            region |= closed | ndimage.binary_dilation(cavity, _BALL)
        whole[part] = _fill_holes(region)[2:-2, 2:-2, 2:-2]
        return whole


def _opened(region: BoolArray, at: np.ndarray) -> BoolArray | None:
    """Open a region by a ball and keep the part around a point; None when nothing compact is left."""
    part = _box_of(region)
    mask = np.pad(region[part], 1)
    at = at - [one.start - 1 for one in part]
    # A structure goes on beyond the faces of the box.
    edges = np.pad(region, 1, mode="edge")[tuple(slice(one.start, one.stop + 2) for one in part)]
    depth = ndimage.distance_transform_edt(edges)
    while True:
        near = _around(at, float(np.clip(depth[tuple(at)], 1.5, 6)), mask.shape)
        deepest = near[np.argmax(depth[tuple(near.T)])]
        if depth[tuple(deepest)] <= depth[tuple(at)]:
            break
        at = deepest
    radius = float(depth[tuple(at)])
    for share in OPENINGS:
        labels, _ = ndimage.label(depth > share * radius)
        kept = labels == labels[tuple(at)]
        # What the ball reaches from there.
        reach = int(share * radius) + 1
        box = tuple(slice(max(0, one.start - reach), one.stop + reach) for one in _box_of(kept))
        mask_in_box = mask[box] & (ndimage.distance_transform_edt(~kept[box]) <= share * radius)
        if mask_in_box.sum() <= MAX_BALLS * 4 / 3 * np.pi * max(radius, 1.0) ** 3:
            opened = np.zeros_like(mask)
            opened[box] = mask_in_box
            result = np.zeros_like(region)
            result[part] = opened[1:-1, 1:-1, 1:-1]
            return result
    return None


def _fill_holes(mask: BoolArray) -> BoolArray:
    """Fill what is surrounded; several times as fast as SciPy's, which dilates from outside voxel by voxel."""
    labels, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.asarray(labels[1:-1, 1:-1, 1:-1] != 1)


def _box_of(mask: BoolArray) -> tuple[slice, ...]:
    """Find the box around a mask that is not empty."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]


def _around(at: np.ndarray, radius: float, shape: tuple[int, ...]) -> np.ndarray:
    """List the voxels (n, 3) in a ball, inside an array."""
    reach = int(radius)
    offsets = np.argwhere(np.ones((2 * reach + 1,) * 3)) - reach
    near = at + offsets[np.linalg.norm(offsets, axis=1) <= radius]
    return np.asarray(near[((near >= 0) & (near < shape)).all(axis=1)])


def _radius(mask: BoolArray) -> float:
    """Radius of a ball of the same volume, voxels."""
    return float(np.cbrt(0.75 / np.pi * mask.sum()))
