"""Candidates of our own for scans that come without a list: places inside the lungs that look like a blob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.grid import resample_isotropic
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

#: Smoothing by fewer voxels than this is not worth the name on a grid; by more, a grid twice as coarse is as good.
_FINEST_SIGMA = 1.25
#: Gaussians are cut off after this many standard deviations.
_TRUNCATE = 4.0
#: Voxels of the grid along its first axis that are worked on at once, which limits the memory.
_SLAB = 48
_NEIGHBOURS = np.argwhere(np.ones((3, 3, 3))) - 1

FloatArray = NDArray[np.float64]


class BlobProposer:
    """Propose candidates: blobs of all sizes inside the lungs.

    1. The lungs are segmented (:func:`luna_monai.detection.lungs.find_lungs`), nodules on the pleura taken in. What is
       outside is given the density of lung, so that such a nodule stands alone.
    2. HU are limited to a window; the scores are parts of its width. In the wide window solid nodules stand out from
       noise and haze, in the narrow one ground glass counts as much as they do.
    3. For each radius r, the scan is smoothed by a Gaussian of standard deviation r / sqrt(3), at which the Laplacian
       answers strongest to a ball of that radius (Lindeberg, "Feature detection with automatic scale selection",
       International Journal of Computer Vision 30, 1998). Where the Laplacian is lowest among the neighbours, the
       eigenvalues l1 <= l2 <= l3 of the Hessian tell a ball (all three far below 0) from a vessel (l3 near 0) and a
       wall (l2 and l3 near 0). The score is r^2 / 3 * l3^2 / |l1|: the enhancement of dots of Li, Sone and Doi
       ("Selective enhancement filters for nodules, vessels, and airway walls in two- and three-dimensional CT scans",
       Medical Physics 30, 2003).
    4. Blobs of all radii and windows are merged, the best first; those close to a better one are dropped.

    The same scan gives the same candidates, whatever the number of threads.

    Args:
        max_candidates: how many candidates a scan has at most.
        radii: of the blobs looked for, mm.
        spacing: of the isotropic grid on which small blobs are looked for, mm; large ones are on coarser grids.
        windows: pairs of the lowest and the highest HU that are told apart.
        min_contrast: how far a blob in the smoothed scan is above the median of the lungs, HU.
        closing_mm: radius of the ball that closes the surface of the lungs over nodules on the pleura, mm.
        merge_radii: blobs are dropped when they are nearer to a better one than this part of its radius, ...
        merge_mm: ... or nearer than this, mm.
        threads: how many parts of the scan are worked on at the same time.

    Raises:
        LunaError: when an argument is out of its range.
    """

    def __init__(
        self,
        *,
        max_candidates: int = 400,
        radii: Sequence[float] = (1.75, 2.5, 3.5, 5.0, 7.0, 10.0, 14.0),
        spacing: float = 1.0,
        windows: Sequence[tuple[float, float]] = ((-950.0, -100.0), (-900.0, -550.0)),
        min_contrast: float = 40.0,
        closing_mm: float = 12.0,
        merge_radii: float = 0.5,
        merge_mm: float = 2.0,
        threads: int = 2,
    ) -> None:
        for name, count in {"max_candidates": max_candidates, "threads": threads}.items():
            if count < 1:
                raise LunaError(f"{name} must be at least 1, found {count}")
        if len(radii) == 0 or not all(radius > 0 for radius in radii):
            raise LunaError(f"radii must be positive numbers of mm, found {list(radii)}")
        if not spacing > 0:
            raise LunaError(f"spacing must be a positive number of mm, found {spacing}")
        if len(windows) == 0 or not all(low < high for low, high in windows):
            raise LunaError(f"windows must be pairs of a lower and a higher number of HU, found {list(windows)}")
        for name, value in {
            "min_contrast": min_contrast,
            "closing_mm": closing_mm,
            "merge_radii": merge_radii,
            "merge_mm": merge_mm,
        }.items():
            if not value >= 0:
                raise LunaError(f"{name} must be 0 or more, found {value}")
        self.max_candidates = max_candidates
        self.radii = tuple(sorted(radii))
        self.spacing = spacing
        self.windows = tuple((float(low), float(high)) for low, high in windows)
        self.min_contrast = min_contrast
        self.closing_mm = closing_mm
        self.merge_radii = merge_radii
        self.merge_mm = merge_mm
        self.threads = threads

    def __call__(self, volume: np.ndarray, geometry: Geometry, lungs: Lungs | None = None) -> pd.DataFrame:
        """Propose candidates.

        Args:
            volume: HU (z, y, x), whole numbers or floats.
            geometry: of the scan.
            lungs: what :func:`~luna_monai.detection.lungs.find_lungs` found in it; looked for when None.

        Returns:
            ``coordX``, ``coordY``, ``coordZ``: centres of the blobs, LPS mm, the best first. No row when there are no
            lungs, which :func:`luna_monai.detection.lungs.chest_warnings` says in words.

        Raises:
            LunaError: when the volume and the geometry do not belong together.
        """
        if volume.shape != geometry.shape:
            raise LunaError(f"a volume of {volume.shape} voxels (z, y, x) with a geometry of {geometry.shape}")
        lungs = (lungs or find_lungs(volume, geometry)).closed(self.closing_mm)
        found = list(self._find(volume, geometry, lungs)) if lungs.mask.any() else []
        blobs = np.concatenate([np.zeros((0, 5)), *found])
        return pd.DataFrame(blobs[self._merge(blobs), :3], columns=COORDINATES)

    def _find(self, volume: np.ndarray, geometry: Geometry, lungs: Lungs) -> Iterator[FloatArray]:
        """Find the blobs of each radius in each window: (n, 5), position (LPS mm), radius (mm) and score."""
        box = lungs.box_in(geometry)
        for spacing, radii in self._grids().items():
            hu, grid = resample_isotropic(volume, geometry, spacing, box=box)
            inside = lungs.inside(grid)
            work = partial(self._find_in_slab, hu, inside, spacing, radii, lungs.median_hu)
            with ThreadPoolExecutor(self.threads) as pool:
                # In the order of the slabs, whichever is ready first.
                for found in pool.map(work, range(0, len(hu), _SLAB)):
                    yield np.column_stack([grid.index_to_world(found[:, :3]), found[:, 3:]])

    def _find_in_slab(
        self,
        hu: NDArray[np.int16],
        inside: NDArray[np.bool_],
        spacing: float,
        radii: Sequence[float],
        median_hu: float,
        start: int,
    ) -> FloatArray:
        """Find the blobs in a slab of the grid: (n, 5), index z, y, x, radius (mm) and score."""
        blobs = [np.zeros((0, 5))]
        (core,) = ndimage.find_objects(inside[start : start + _SLAB].astype(np.uint8)) or (None,)
        if core is None:
            return blobs[0]
        core = (slice(start + core[0].start, start + core[0].stop), *core[1:])
        for low, high in self.windows:
            lung_hu = np.clip(median_hu, low, high)
            for radius in radii:
                sigma = _sigma(radius) / spacing
                # Smoothing reaches this far; of what is left, two voxels are neighbors.
                wide, narrow = (_grown(core, margin, hu.shape) for margin in (int(_TRUNCATE * sigma + 0.5) + 2, 2))
                limited = np.clip(hu[wide], low, high, dtype=np.float32)
                limited[~inside[wide]] = lung_hu
                smooth = ndimage.gaussian_filter(limited, sigma, mode="nearest", truncate=_TRUNCATE, output=limited)
                part = tuple(slice(n.start - w.start, n.stop - w.start) for n, w in zip(narrow, wide, strict=True))
                voxels, index, score = _find_blobs(smooth[part], inside[narrow], sigma, lung_hu + self.min_contrast)
                first = np.array([one.start for one in narrow])
                limits = np.array([[one.start, one.stop] for one in core]) - first[:, None]
                own = np.all((voxels >= limits[:, 0]) & (voxels < limits[:, 1]), axis=1)
                index = np.clip(index[own] + first, 0, np.array(hu.shape) - 1)
                blobs.append(np.column_stack([index, np.full(len(index), radius), score[own] / (high - low)]))
        return np.concatenate(blobs)

    def _grids(self) -> dict[float, list[float]]:
        """Choose the spacing of the grid for each radius: the coarsest that shows its blobs."""
        grids: dict[float, list[float]] = {}
        for radius in self.radii:
            spacing = self.spacing
            while _sigma(radius) / (2 * spacing) >= _FINEST_SIGMA:
                spacing *= 2
            grids.setdefault(spacing, []).append(radius)
        return grids

    def _merge(self, blobs: FloatArray) -> list[int]:
        """Choose the best blobs (rows of position, radius, score) that are not close to a better one."""
        kept: list[int] = []
        # Equal scores are ordered by position, so that the order never depends on how the blobs were found.
        for row in np.lexsort((*blobs[:, :4].T, -blobs[:, 4])):
            better = blobs[kept]
            away = np.linalg.norm(better[:, :3] - blobs[row, :3], axis=1)
            if np.all(away >= np.maximum(self.merge_mm, self.merge_radii * better[:, 3])):
                kept.append(int(row))
            if len(kept) == self.max_candidates:
                break
        return kept


def _sigma(radius: float) -> float:
    """Return the standard deviation of the Gaussian whose Laplacian answers strongest to a ball of a radius."""
    return float(radius / np.sqrt(3))


def _grown(box: tuple[slice, ...], margin: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Grow a box by a margin, as far as the array goes."""
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin)) for part, size in zip(box, shape, strict=True)
    )


def _find_blobs(
    smooth: NDArray[np.float32], inside: NDArray[np.bool_], sigma: float, lowest_hu: float
) -> tuple[NDArray[np.intp], FloatArray, FloatArray]:
    """Find blobs of one size.

    Args:
        smooth: smoothed HU (z, y, x).
        inside: where blobs may be (z, y, x).
        sigma: of the smoothing, voxels.
        lowest_hu: of the smoothed scan at a blob.

    Returns:
        The voxels (n, 3) of the blobs, their centers (n, 3) as fractional indices z, y, x, and the scores (n,), HU.
    """
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
    for shift in _NEIGHBOURS @ steps:
        # Of neighbours with the same value the last one is the blob.
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
    # The top of the parabola through the neighbours; a step of more than a voxel means that there is none.
    step_to_top = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    voxels = np.stack(np.unravel_index(at, smooth.shape), axis=1) - 1
    return voxels, voxels + np.clip(step_to_top, -1, 1), score
