"""Outlines of small structures in the lungs, on the voxels of the scan."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.detection.grid import grid_at, grown, interpolate
from luna_monai.detection.lungs import Lungs
from luna_monai.scans.geometry import Geometry

#: Boxes in which a structure is looked for, one after the other until it fits: half of the edge and the grid, mm.
BOXES = ((12.0, 1.0), (24.0, 1.5), (40.0, 2.5))
#: Values outside count as these, so that calcium and bone do not raise the threshold, HU.
LIMITS_HU = (-1000, 100)
#: Air in a cavity counts as this, HU.
CAVITY_AS_HU = 0.0
#: The background is the median of the lung below this, HU.
LUNG_HU = -500.0
#: Fewer voxels of such lung in a box say nothing about the background.
MIN_LUNG_VOXELS = 50
#: A structure is denser than the background by this at least, HU.
MIN_CONTRAST = 120.0
#: Standard deviation of the smoothing, as a part of the spacing of the grid.
SMOOTHING = 0.4
#: How far from the candidate the densest point is looked for; the wall of a cavity needs the second try, mm.
CORE_MM = (2.5, 5.0)
#: The candidate may be this far outside of the outline, mm.
SEED_MM = 2.5
#: Thresholds between background (0) and densest point (1): the edge of a structure, and of a halo around it.
EDGE, HALO = 0.4, 0.2
#: There is a halo where most of the lung this far outside of the edge, mm, is above this threshold. Blur raises less.
AROUND_MM, AROUND = (0.6, 1.6), 0.15
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


def find_outline(voxels: np.ndarray, geometry: Geometry, index: np.ndarray, lungs: Lungs) -> NDArray[np.intp]:
    """Outline the structure at a position of a scan.

    The region around the densest point near the position that is above a threshold, 40 % of the way from the lung
    around it to this point, with cavities filled, is opened by a ball of half the radius of the largest ball inside it:
    vessels and remains of the pleura are thinner. The size of the ball adapted to the structure is that of Kuhnigk et
    al., "Morphological segmentation and partial volume analysis for volumetry of solid pulmonary lesions in thoracic CT
    scans" (IEEE Transactions on Medical Imaging 25, 2006). Where the lung just outside is denser than blur makes it,
    the structure has a halo of ground glass, which belongs to it and is found by a threshold of 20 %.

    Args:
        voxels: HU (z, y, x).
        geometry: of the scan.
        index: the position, z, y, x, which may be fractions.
        lungs: of the scan; an empty mask restricts nothing.

    Returns:
        Indices z, y, x (n, 3) of the voxels in the outline; none where no compact structure stands out.
    """
    spacing, size = np.array(geometry.spacing[::-1]), np.array(voxels.shape)
    for reach_mm, step_mm in BOXES:
        low = np.clip(np.floor(index - reach_mm / spacing), 0, size - 1).astype(int)
        high = np.clip(np.ceil(index + reach_mm / spacing) + 1, low + 1, size).astype(int)
        scale = spacing / step_mm
        grid = grid_at(geometry, low, np.floor((high - low - 1) * scale + 1.01), step_mm)
        fine = np.clip(voxels[tuple(map(slice, low, high))], *LIMITS_HU).astype(np.float32)
        fine = ndimage.gaussian_filter(fine, SMOOTHING * step_mm / spacing, mode="nearest")
        hu, (lung, cavity) = interpolate(fine, np.zeros(3), 1 / scale, grid.shape), lungs.shares_at(grid)
        # A cavity counts as soft tissue, so that its wall is one structure even if the box cuts it.
        hu[cavity > 0.5] = np.maximum(hu[cavity > 0.5], CAVITY_AS_HU)
        around = hu[(lung > LUNG_SHARE) & (hu < LUNG_HU)]
        if around.size < MIN_LUNG_VOXELS:
            continue  # a large structure fills the box
        seed = np.clip(np.rint((index - low) * scale), 0, np.subtract(hu.shape, 1))
        away = _distance_from(seed, hu.shape) * step_mm
        # A structure may reach the faces of the scan, not other ones of the box.
        inner = tuple(map(slice, (low > 0).astype(int), hu.shape - (high < size)))
        inside, background = lung > LUNG_SHARE, float(np.median(around))
        mask, core, contrast = _segment(hu, inside, away, inner, step_mm, background)
        if mask is None:
            break
        if mask[inner].sum() < mask.sum():
            continue
        outline = _on_voxels(mask, scale, fine, background + EDGE * contrast)
        within = interpolate(lung, np.zeros(3), scale, fine.shape) > LUNG_SHARE
        if outline.any() and _has_halo(outline, within, fine > background + AROUND * contrast, geometry.spacing[::-1]):
            lowest_hu = background + max(HALO * contrast, MIN_CONTRAST / 2)
            halo = _compact_part(inside & (hu > lowest_hu), core)
            if halo is not None and halo[inner].sum() < halo.sum():
                continue
            outline = outline if halo is None else _on_voxels(halo, scale, fine, lowest_hu)
        return np.argwhere(outline) + low
    return np.empty((0, 3), dtype=int)


def _distance_from(at: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance of the voxels of an array from one of them, voxels."""
    z, y, x = ((np.arange(size) - place) ** 2 for place, size in zip(at, shape, strict=True))
    return np.asarray(np.sqrt(z[:, None, None] + y[:, None] + x))


def _on_voxels(mask: BoolArray, scale: np.ndarray, hu: np.ndarray, lowest_hu: float) -> BoolArray:
    """Take a mask of the grid to the voxels of the scan."""
    share = interpolate(mask, np.zeros(3), scale, hu.shape)
    return np.asarray((share > SHARE) | ((share > SHARE_OF_DENSE) & (hu > lowest_hu)))


def _has_halo(outline: BoolArray, lung: BoolArray, dense: BoolArray, spacing: Sequence[float]) -> bool:
    """Tell whether most of the lung just outside of an outline is dense."""
    to_surface = np.cbrt(np.prod(spacing)) / 2  # from the centers of the voxels at the surface
    (box,) = ndimage.find_objects(outline.astype(np.uint8))
    near = grown(box, int((AROUND_MM[1] + to_surface) / min(spacing)) + 1)
    outside_mm = ndimage.distance_transform_edt(~outline[near], spacing) - to_surface
    around = dense[near][lung[near] & (outside_mm >= AROUND_MM[0]) & (outside_mm <= AROUND_MM[1])]
    return bool(2 * around.sum() > around.size)


def _segment(
    hu: np.ndarray, lung: BoolArray, away: np.ndarray, inner: Any, step_mm: float, background: float
) -> tuple[BoolArray | None, Any, float]:
    """Find the structure on the grid, its densest voxel, and by how much this is denser than the lung around it."""
    for reach_mm in CORE_MM:
        near = np.where(lung & (away <= reach_mm), hu, -np.inf)
        core = np.unravel_index(np.argmax(near), hu.shape)
        contrast = float(near[core]) - background
        mask = _compact_part(lung & (hu > background + EDGE * contrast), core) if contrast >= MIN_CONTRAST else None
        # A larger box is needed where it reaches the faces of this one.
        if mask is not None and (mask[inner].sum() < mask.sum() or away[mask].min() <= SEED_MM):
            return mask, core, contrast
    return None, None, 0.0


def _compact_part(dense: BoolArray, at: tuple[np.intp, ...]) -> BoolArray | None:
    """Open the region at a voxel, with its cavities, by a ball that fits it; None when nothing compact is left."""
    labels, _ = ndimage.label(dense)
    region = labels == labels[at]
    (box,) = ndimage.find_objects(region.astype(np.uint8))
    # Cavities are filled, even if their wall has gaps.
    part = np.pad(region[box], 2)
    closed = ndimage.binary_erosion(ndimage.binary_dilation(part, _BALL), _BALL)
    cavity = _fill_holes(closed) & ~closed
    if cavity.any():
        part |= closed | ndimage.binary_dilation(cavity, _BALL)
    region[box] = _fill_holes(part)[2:-2, 2:-2, 2:-2]
    # A structure goes on beyond the faces of the array.
    wide = tuple(slice(one.start, one.stop + 2) for one in box)
    part, depth = np.pad(region, 1)[wide], ndimage.distance_transform_edt(np.pad(region, 1, mode="edge")[wide])
    at = tuple(place - one.start + 1 for place, one in zip(at, box, strict=True))
    while True:
        near = _distance_from(at, part.shape) <= np.clip(depth[at], 1.5, 6)
        deepest = np.unravel_index(np.argmax(near * depth), part.shape)
        if depth[deepest] <= depth[at]:
            break
        at = deepest
    radius = float(depth[at])
    for share in OPENINGS:
        labels, _ = ndimage.label(depth > share * radius)
        opened = part & (ndimage.distance_transform_edt(labels != labels[at]).astype(np.float32) <= share * radius)
        if opened.sum() <= MAX_BALLS * 4 / 3 * np.pi * max(radius, 1.0) ** 3:
            region[box] = opened[1:-1, 1:-1, 1:-1]
            return region
    return None


def _fill_holes(mask: BoolArray) -> BoolArray:
    """Fill what is surrounded; several times as fast as SciPy's, which dilates from outside voxel by voxel."""
    labels, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.asarray(labels[1:-1, 1:-1, 1:-1] != 1)
