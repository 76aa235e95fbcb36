"""Candidate proposals for scans without a candidate list: blobs inside the lungs."""

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
from luna_monai.detection.grid import grown, resample
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.scans.geometry import Geometry

#: Radii of the blobs, mm, on grids of 1, 2 and 4 mm. Each radius uses the coarsest grid that resolves it.
RADII = ((1.75, 2.5, 3.5), (5.0, 7.0), (10.0, 14.0))
#: Ranges that HU are clipped to: for solid nodules, and for ground glass.
WINDOWS = ((-950.0, -100.0), (-900.0, -550.0))
#: Smallest difference between a blob in the smoothed scan and the median of the lungs, HU.
MIN_CONTRAST = 40.0
#: A blob is dropped if its distance to a better blob is below this fraction of the better blob's radius, or this in mm.
MERGE_RADII, MERGE_MM = 0.5, 2.0
#: Number of slabs of a scan that are processed at the same time.
_THREADS = 2
#: Gaussian kernels are truncated at this number of standard deviations.
_TRUNCATE = 3.0
#: Thickness of a slab, in voxels along the first axis of the grid, which limits the memory.
_SLAB = 48
_NEIGHBORS = np.argwhere(np.ones((3, 3, 3))) - 1

FloatArray = NDArray[np.float64]


@dataclass
class BlobProposer:
    """Proposes candidates: blobs of all sizes inside the lungs.

    1. The lungs are segmented (:func:`luna_monai.detection.lungs.find_lungs`), including nodules on the pleura. Voxels
       outside the lungs are set to the median of the lungs, so that a nodule on the pleura is isolated.
    2. HU are clipped to a window, and scores are divided by its width. The wide window separates solid nodules from
       noise and haze. The narrow window gives ground-glass nodules similar scores.
    3. For each radius r, the scan is smoothed by a Gaussian of standard deviation r / sqrt(3), for which the response
       of the Laplacian to a ball of that radius is strongest (Lindeberg, "Feature detection with automatic scale
       selection", International Journal of Computer Vision 30, 1998). At local minima of the Laplacian, the
       eigenvalues l1 <= l2 <= l3 of the Hessian distinguish a ball (all three far below 0) from a vessel (l3 near 0)
       and a wall (l2 and l3 near 0). The score is r^2 / 3 * l3^2 / |l1|, the dot enhancement filter of Li, Sone and
       Doi ("Selective enhancement filters for nodules, vessels, and airway walls in two- and three-dimensional CT
       scans", Medical Physics 30, 2003).
    4. Blobs of all radii and windows are merged, best first. Blobs close to a better blob are dropped.

    The candidates do not depend on floating-point errors of the spacing.

    Args:
        max_candidates: largest number of candidates of a scan. In synthetic scans, the first hit on a nodule is among
            the first 175. In real scans, 98 % of LUNA16's nodules have scores as high as those of the first 300.
    """

    max_candidates: int = 300

    def __call__(self, volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> pd.DataFrame:
        """Propose candidates.

        Args:
            volume: HU (z, y, x), integers or floats, oriented to LPS.
            geometry: geometry of the scan.
            lungs: result of :func:`~luna_monai.detection.lungs.find_lungs` for the scan; None to compute it.

        Returns:
            Table with ``coordX``, ``coordY``, ``coordZ``, the centers of the blobs in LPS mm, best first. It is empty
            if there are no lungs; :func:`luna_monai.detection.lungs.chest_warnings` then gives a warning.
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
                # Results are in the order of the slabs.
                found += pool.map(work, range(0, len(hu), _SLAB))
        # Distances are in mm along the grid's axes, which do not depend on rounding errors of the geometry.
        blobs, kept = np.concatenate(found), list[int]()
        # Equal scores are ordered by position, so that the order does not depend on the slabs.
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


def _find_in_slab(
    hu: np.ndarray, inside: NDArray[np.bool_], spacing: float, radii: Sequence[float], median_hu: float, start: int
) -> FloatArray:
    """Find the blobs in a slab of the grid: (n, 5), z, y, x (mm from the grid's corner), radius (mm) and score."""
    blobs = [np.zeros((0, 5))]
    # A box for each lung, so that the space between the lungs is not smoothed.
    parts, _ = ndimage.label(inside[start : start + _SLAB])
    boxes = enumerate(ndimage.find_objects(parts), start=1)
    for (label, box), (low, high), radius in product(boxes, WINDOWS, radii):
        core = (slice(start + box[0].start, start + box[0].stop), *box[1:])
        sigma, lung_hu = radius / np.sqrt(3) / spacing, np.clip(median_hu, low, high)
        # The wide box includes the kernel; the narrow box has a margin of two voxels for the derivatives.
        wide, narrow = (grown(core, margin) for margin in (int(_TRUNCATE * sigma + 0.5) + 2, 2))
        limited = np.clip(hu[wide], low, high, dtype=np.float32)
        limited[~inside[wide]] = lung_hu
        smooth = ndimage.gaussian_filter(limited, sigma, mode="nearest", truncate=_TRUNCATE, output=limited)
        part = tuple(slice(n.start - w.start, n.stop - w.start) for n, w in zip(narrow, wide, strict=True))
        voxels, index, score = _find_blobs(smooth[part], inside[narrow], sigma, lung_hu + MIN_CONTRAST)
        first = np.array([one.start for one in narrow])
        limits = np.array([[one.start, one.stop] for one in core]) - first[:, None]
        own = np.all((voxels >= limits[:, 0]) & (voxels < limits[:, 1]), axis=1)
        own[own] = parts[tuple((voxels[own] + first - [start, 0, 0]).T)] == label
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
        # If neighbors have equal values, only the last one is a minimum.
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
    # The maximum of the parabola through the neighbors, limited to a distance of one voxel.
    to_top = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    to_top /= np.maximum(1, np.linalg.norm(to_top, axis=1, keepdims=True))
    voxels = np.stack(np.unravel_index(at, smooth.shape), axis=1) - 1
    return voxels, voxels + to_top, score
