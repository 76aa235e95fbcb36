"""Outlines of small structures in the lungs, on the voxels of the scan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.detection.grid import grid_at, interpolate
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


def find_outline(voxels: np.ndarray, geometry: Geometry, index: np.ndarray, lungs: Lungs) -> NDArray[np.intp]:
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
        Indices z, y, x (n, 3) of the voxels in the outline; none where no compact structure stands out.
    """
    spacing, size = np.array(geometry.spacing[::-1]), np.array(voxels.shape)
    for reach_mm, step_mm in BOXES:
        low = np.clip(np.floor(index - reach_mm / spacing), 0, size - 1).astype(int)
        high = np.clip(np.ceil(index + reach_mm / spacing) + 1, low + 1, size).astype(int)
        scale = spacing / step_mm
        grid = grid_at(geometry, low, np.floor((high - low - 1) * scale + 1.01), step_mm)
        fine = np.clip(voxels[tuple(map(slice, low, high))], *LIMITS_HU).astype(np.float32)
        fine = ndimage.gaussian_filter(fine, SMOOTHING_MM / spacing, mode="nearest")
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
        mask, lowest_hu = _segment(hu, lung > LUNG_SHARE, away, inner, step_mm, float(np.median(around)))
        if mask is None:
            break
        if mask[inner].sum() == mask.sum():
            share = interpolate(mask, np.zeros(3), scale, fine.shape)
            return np.argwhere((share > SHARE) | ((share > SHARE_OF_DENSE) & (fine > lowest_hu))) + low
    return np.empty((0, 3), dtype=int)


def _distance_from(at: Iterable[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance of the voxels of an array from one of them, voxels."""
    z, y, x = ((np.arange(size) - place) ** 2 for place, size in zip(at, shape, strict=True))
    return np.asarray(np.sqrt(z[:, None, None] + y[:, None] + x))


def _segment(
    hu: np.ndarray, lung: BoolArray, away: np.ndarray, inner: Any, step_mm: float, background: float
) -> tuple[BoolArray | None, float]:
    """Find the structure on the grid, and the lowest HU that belong to it, given the HU of the lung around it."""
    tried = None
    for reach_mm in CORE_MM:
        near = np.where(lung & (away <= reach_mm), hu, -np.inf)
        core = np.unravel_index(np.argmax(near), hu.shape)
        contrast = float(near[core]) - background
        if contrast < MIN_CONTRAST or core == tried:
            continue
        tried, lowest_hu = core, background + EDGE * contrast
        mask = _compact_part(lung & (hu > lowest_hu), core)
        if mask is None:
            continue
        if mask[inner].sum() < mask.sum():
            return mask, lowest_hu  # a larger box is needed
        halo_hu = background + max(HALO * contrast, MIN_CONTRAST / 2)
        halo = _compact_part(lung & (hu > halo_hu), core)
        # Radii of balls of the same volume.
        if halo is not None and np.cbrt(0.75 / np.pi) * step_mm * (np.cbrt(halo.sum()) - np.cbrt(mask.sum())) > HALO_MM:
            mask, lowest_hu = halo, halo_hu
        if away[mask].min() <= SEED_MM:
            return mask, lowest_hu
    return None, 0.0


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
        kept, reach, opened = labels == labels[at], int(share * radius) + 1, np.zeros_like(part)
        (core,) = ndimage.find_objects(kept.astype(np.uint8))
        near = tuple(slice(max(0, one.start - reach), one.stop + reach) for one in core)
        opened[near] = part[near] & (ndimage.distance_transform_edt(~kept[near]) <= share * radius)
        if opened.sum() <= MAX_BALLS * 4 / 3 * np.pi * max(radius, 1.0) ** 3:
            region[box] = opened[1:-1, 1:-1, 1:-1]
            return region
    return None


def _fill_holes(mask: BoolArray) -> BoolArray:
    """Fill what is surrounded; several times as fast as SciPy's, which dilates from outside voxel by voxel."""
    labels, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return np.asarray(labels[1:-1, 1:-1, 1:-1] != 1)
