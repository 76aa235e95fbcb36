"""Candidates of our own for scans that come without a list: places inside the lungs that look like a blob."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.grid import resample
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.scans.geometry import Geometry

#: Radii of the blobs looked for, mm, on a grid of 1 mm and on those twice and four times as coarse: the coarsest one
#: that shows them.
RADII = ((1.75, 2.5, 3.5), (5.0, 7.0), (10.0, 14.0))
#: Pairs of the lowest and the highest HU that are told apart: solid nodules, and ground glass.
WINDOWS = ((-950.0, -100.0), (-900.0, -550.0))
#: How far a blob in the smoothed scan is above the median of the lungs, HU.
MIN_CONTRAST = 40.0
#: Blobs are dropped when they are nearer to a better one than this part of its radius, or than this in mm.
MERGE_RADII, MERGE_MM = 0.5, 2.0
#: Parts of a scan that are worked on at the same time.
_THREADS = 2
#: Gaussians are cut off after this many standard deviations.
_TRUNCATE = 3.0
#: Voxels of the grid along its first axis that are worked on at once, which limits the memory.
_SLAB = 48
_NEIGHBORS = np.argwhere(np.ones((3, 3, 3))) - 1

FloatArray = NDArray[np.float64]


@dataclass
class BlobProposer:
    """Propose candidates: blobs of all sizes inside the lungs.

    1. The lungs are segmented (:func:`luna_monai.detection.lungs.find_lungs`), nodules on the pleura taken in. What is
       outside is given the density of lung, so that such a nodule stands alone.
    2. HU are limited to a window; the scores are parts of its width. In the wide window solid nodules stand out from
       noise and haze, in the narrow one ground glass counts as much as they do.
    3. For each radius r, the scan is smoothed by a Gaussian of standard deviation r / sqrt(3), at which the Laplacian
       answers strongest to a ball of that radius (Lindeberg, "Feature detection with automatic scale selection",
       International Journal of Computer Vision 30, 1998). Where the Laplacian is lowest among the neighbors, the
       eigenvalues l1 <= l2 <= l3 of the Hessian tell a ball (all three far below 0) from a vessel (l3 near 0) and a
       wall (l2 and l3 near 0). The score is r^2 / 3 * l3^2 / |l1|: the enhancement of dots of Li, Sone and Doi
       ("Selective enhancement filters for nodules, vessels, and airway walls in two- and three-dimensional CT scans",
       Medical Physics 30, 2003).
    4. Blobs of all radii and windows are merged, the best first; those close to a better one are dropped.

    The same scan gives the same candidates, whatever the last bits of the spacing.

    Args:
        max_candidates: how many candidates a scan has at most. The first hit on a nodule is among the first 175 in
            synthetic scans, and 98 % of LUNA16's nodules stand out as much as the first 300 of a real scan do.
    """

    max_candidates: int = 300

    def __call__(self, volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> pd.DataFrame:
        """Propose candidates.

        Args:
            volume: HU (z, y, x), whole numbers or floats, turned to LPS.
            geometry: of the scan.
            lungs: what :func:`~luna_monai.detection.lungs.find_lungs` found in it; looked for when None.

        Returns:
            ``coordX``, ``coordY``, ``coordZ``: centers of the blobs, LPS mm, the best first. No row when there are no
            lungs, which :func:`luna_monai.detection.lungs.chest_warnings` says in words.
        """
        lungs = lungs or find_lungs(volume, geometry)
        if not lungs.airy.any():
            return pd.DataFrame(columns=COORDINATES, dtype=float)
        grid, inside = lungs.fine_grid()
        hu: np.ndarray = resample(volume, geometry, grid)
        found: list[FloatArray] = []
        for level, radii in enumerate(RADII):
            if level > 0:
                hu, inside = _halved(hu), _halved(inside) > 0.5
            work = partial(_find_in_slab, hu, inside, 2**level, radii, float(np.median(lungs.hu[lungs.airy])))
            with ThreadPoolExecutor(_THREADS) as pool:
                # In the order of the slabs, whichever is ready first.
                found += pool.map(work, range(0, len(hu), _SLAB))
        # In mm of the grid's own axes, which are the same whatever the last bits of the scan's geometry are.
        blobs, kept = np.concatenate(found), list[int]()
        # Equal scores are ordered by position, so that the order never depends on how the blobs were found.
        for row in np.lexsort((*blobs[:, :4].T, -blobs[:, 4])).tolist():
            better = blobs[kept]
            away = np.linalg.norm(better[:, :3] - blobs[row, :3], axis=1)
            if np.all(away >= np.maximum(MERGE_MM, MERGE_RADII * better[:, 3])):
                kept.append(row)
            if len(kept) == self.max_candidates:
                break
        return pd.DataFrame(grid.index_to_world(blobs[kept, :3] / grid.spacing - 0.5), columns=COORDINATES)


def _halved(array: np.ndarray) -> NDArray[np.float32]:
    """Average blocks of 2 x 2 x 2 voxels."""
    array = np.pad(array, [(0, size % 2) for size in array.shape], mode="edge")
    parts = [array[corner[0] :: 2, corner[1] :: 2, corner[2] :: 2] for corner in np.ndindex(2, 2, 2)]
    return np.asarray(sum(parts[1:], parts[0].astype(np.float32)) / 8)


def _grown(box: Sequence[slice], margin: int, shape: Sequence[int]) -> tuple[slice, ...]:
    """Grow a box by a margin, as far as the array goes."""
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin)) for part, size in zip(box, shape, strict=True)
    )


def _find_in_slab(
    hu: np.ndarray, inside: NDArray[np.bool_], spacing: float, radii: Sequence[float], median_hu: float, start: int
) -> FloatArray:
    """Find the blobs in a slab of the grid: (n, 5), z, y, x (mm from the grid's corner), radius (mm) and score."""
    blobs = [np.zeros((0, 5))]
    boxes = ndimage.find_objects(inside[start : start + _SLAB].astype(np.uint8))
    for box, (low, high), radius in product(boxes, WINDOWS, radii):
        core = (slice(start + box[0].start, start + box[0].stop), *box[1:])
        sigma, lung_hu = radius / np.sqrt(3) / spacing, np.clip(median_hu, low, high)
        # Smoothing reaches this far; of what is left, two voxels are neighbors.
        wide, narrow = (_grown(core, margin, hu.shape) for margin in (int(_TRUNCATE * sigma + 0.5) + 2, 2))
        limited = np.clip(hu[wide], low, high, dtype=np.float32)
        limited[~inside[wide]] = lung_hu
        smooth = ndimage.gaussian_filter(limited, sigma, mode="nearest", truncate=_TRUNCATE, output=limited)
        part = tuple(slice(n.start - w.start, n.stop - w.start) for n, w in zip(narrow, wide, strict=True))
        voxels, index, score = _find_blobs(smooth[part], inside[narrow], sigma, lung_hu + MIN_CONTRAST)
        first = np.array([one.start for one in narrow])
        limits = np.array([[one.start, one.stop] for one in core]) - first[:, None]
        own = np.all((voxels >= limits[:, 0]) & (voxels < limits[:, 1]), axis=1)
        place = spacing * (index[own] + first + 0.5)
        blobs.append(np.column_stack([place, np.full(len(place), radius), score[own] / (high - low)]))
    return np.concatenate(blobs)


def _find_blobs(
    smooth: NDArray[np.float32], inside: NDArray[np.bool_], sigma: float, lowest_hu: float
) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    """Find the voxels (n, 3) of blobs, their centers (n, 3) as fractional indices z, y, x, and scores (n,), HU."""
    # A margin of one voxel, so that each voxel has neighbors.
    smooth = np.pad(smooth, 1, mode="edge")
    steps = np.array([smooth.shape[1] * smooth.shape[2], smooth.shape[2], 1])
    at = np.flatnonzero(np.pad(inside, 1) & (smooth > lowest_hu))
    flat = smooth.ravel()

    curvature = -6 * flat[at]
    for step in steps:
        curvature += flat[at - step]
        curvature += flat[at + step]
    laplacian = np.zeros_like(flat)
    laplacian[at] = np.minimum(curvature, 0)
    at = at[curvature < 0]
    for shift in _NEIGHBORS @ steps:
        # Of neighbors with the same value the last one is the blob.
        if shift != 0:
            lower = laplacian[at] < laplacian[at + shift] if shift > 0 else laplacian[at] <= laplacian[at + shift]
            at = at[lower]

    gradient, hessian = np.zeros((len(at), 3)), np.zeros((len(at), 3, 3))
    for i, a in enumerate(steps):
        gradient[:, i] = (flat[at + a] - flat[at - a]) / 2
        hessian[:, i, i] = flat[at + a] + flat[at - a] - 2 * flat[at]
        for j, b in enumerate(steps[:i]):
            mixed = flat[at + a + b] + flat[at - a - b] - flat[at + a - b] - flat[at - a + b]
            hessian[:, i, j] = hessian[:, j, i] = mixed / 4
    values = np.linalg.eigvalsh(hessian)
    bright = values[:, 2] < 0
    at, gradient, hessian, values = at[bright], gradient[bright], hessian[bright], values[bright]
    score = sigma**2 * values[:, 2] ** 2 / -values[:, 0]
    # The top of the parabola through the neighbors, at most a voxel away: a longer step means that there is none.
    to_top = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    to_top /= np.maximum(1, np.linalg.norm(to_top, axis=1, keepdims=True))
    voxels = np.stack(np.unravel_index(at, smooth.shape), axis=1) - 1
    return voxels, voxels + to_top, score
