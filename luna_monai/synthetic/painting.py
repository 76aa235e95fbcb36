"""Painting of small structures into voxels. Each structure changes only the voxels around it."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

from luna_monai.synthetic.sampling import FloatArray, Grid, Points

Block: TypeAlias = tuple[slice, ...]

_TABLE_STEP = 0.1
_TABLE_RADII = np.arange(0, 4 + _TABLE_STEP, _TABLE_STEP)
_TABLE_DISTANCES = np.arange(0, 7 + _TABLE_STEP, _TABLE_STEP)
# Number of voxels painted at a time, so that all arrays of one step stay in the processor's cache.
_CHUNK = 60_000


@functools.cache
def tube_profile() -> FloatArray:
    """Tabulate the cross-section of a tube in a scan, a disk that is blurred by a Gaussian.

    The value at a distance from the center is the probability that a normally distributed point around it is inside
    the disk, which follows a noncentral chi-squared distribution. Thin tubes are faint, like vessels below the
    resolution.

    Returns:
        Fraction of tube (radius, distance), both in steps of 0.1 standard deviations of the blur.
    """
    radius, distance = np.meshgrid(_TABLE_RADII, _TABLE_DISTANCES, indexing="ij")
    return np.asarray(stats.ncx2.cdf(radius**2, 2, np.maximum(distance, 1e-3) ** 2), dtype=np.float32)


def paint_tubes(cover: FloatArray, grid: Grid, points: Points, radii: Points, sigma: float) -> None:
    """Paint tubes, given by dense points on their axes, into a map of volume fractions.

    Args:
        cover: fraction of each voxel that is inside a tube (z, y, x), 0 to 1; changed in place to the larger value.
        grid: the voxels.
        points: points on the axes of the tubes (n, 3), (x, y, z) in mm.
        radii: radii of the tubes at these points (n,), mm.
        sigma: standard deviation of the blur, mm.
    """
    near = grid.contains(points, -(float(radii.max(initial=0)) + 3 * sigma))
    points, radii = points[near], radii[near]
    step = np.abs(np.asarray(grid.step[::-1]))
    # Tubes of similar size use the same neighborhood of voxels.
    classes = np.ceil(np.log(np.maximum(radii + 2.2 * sigma, 1e-3)) / 0.2).astype(int)
    flat = cover.reshape(-1)
    profile = tube_profile()
    table = profile.reshape(-1)
    top = len(_TABLE_RADII) - 1
    for size in np.unique(classes):
        members = np.flatnonzero(classes == size)
        half = np.ceil(np.exp(0.2 * size) / step - 0.5).astype(int)
        for chunk in np.array_split(members, max(1, len(members) * int(np.prod(2 * half + 1)) // _CHUNK)):
            index = grid.to_index(points[chunk])
            base = np.rint(index).astype(np.int64)
            rest = ((index - base) * step).astype(np.float32)
            # There are few distinct offsets per direction: compute each once and broadcast to the whole neighborhood.
            lines = [np.arange(-h, h + 1) for h in half]
            forms = np.where(np.eye(3, dtype=bool), 2 * half + 1, 1).tolist()
            away = [((lines[d] * np.float32(step[d]) - rest[:, d, None]) ** 2).reshape(-1, *forms[d]) for d in range(3)]
            voxel = [(base[:, d, None] + lines[d]).reshape(-1, *forms[d]) for d in range(3)]
            inside = [(voxel[d] >= 0) & (voxel[d] < cover.shape[d]) for d in range(3)]
            squared = away[0] + away[1] + away[2]
            relative = (radii[chunk] / sigma).astype(np.float32)
            # Above the largest radius of the table, the profile depends only on the distance from the edge.
            row = np.minimum(np.rint(relative / _TABLE_STEP).astype(np.int64), top)
            shift = np.maximum(relative - np.float32(_TABLE_RADII[top]), 0)
            column = np.sqrt(squared.astype(np.float32)) * np.float32(1 / (sigma * _TABLE_STEP))
            column -= (shift / np.float32(_TABLE_STEP))[:, None, None, None]
            lookup = np.clip(column, 0, profile.shape[1] - 1).astype(np.int32)
            lookup += (row * profile.shape[1]).astype(np.int32)[:, None, None, None]
            value = table[lookup]
            used = value > 0.02
            if not all(part.all() for part in inside):
                used &= inside[0] & inside[1] & inside[2]
            target = voxel[0] * (cover.shape[1] * cover.shape[2]) + voxel[1] * cover.shape[2] + voxel[2]
            np.maximum.at(flat, target[used], value[used])


@dataclass(frozen=True)
class Canvas:
    """A volume to paint on.

    Args:
        volume: HU (z, y, x), changed in place.
        grid: the voxels of the volume.
        sigma: standard deviation of the scanner's blur, mm.
    """

    volume: FloatArray
    grid: Grid
    sigma: float

    def around(self, center: Points, reach: float) -> tuple[Block, tuple[FloatArray, ...]]:
        """Find the voxels around a point, or the nearest voxels if none is within reach.

        Args:
            center: the point (3,), (x, y, z) in mm.
            reach: largest distance in each direction, mm.

        Returns:
            The block of voxels as slices (z, y, x), and the signed distances of its voxels from the center along x
            (1, 1, nx), y (1, ny, 1) and z (nz, 1, 1), mm.
        """
        axes = [self.grid.axis(dimension) - center[dimension] for dimension in (2, 1, 0)]
        inside = [np.flatnonzero(np.abs(axis) <= max(reach, float(np.abs(axis).min()))) for axis in axes]
        z, y, x = np.ix_(*(axis[near].astype(np.float32) for axis, near in zip(axes, inside, strict=True)))
        return tuple(slice(int(near[0]), int(near[-1]) + 1) for near in inside), (x, y, z)

    def blend(self, block: Block, share: FloatArray, hu: FloatArray | float) -> None:
        """Paint tissue of ``hu`` HU that fills the fraction ``share`` of each voxel, where it increases the HU."""
        there = self.volume[block]
        np.maximum(there, there + (hu - there) * share, out=there)

    def fill(self, block: Block, distance: FloatArray, hu: float) -> None:
        """Paint tissue of ``hu`` HU inside a surface; ``distance`` is the signed distance in mm, negative inside."""
        self.blend(block, share_inside(distance, self.sigma), hu)


def share_inside(distance: FloatArray, sigma: float) -> FloatArray:
    """Convert signed distances (mm, negative inside) to the fraction of a voxel inside, with a blur of ``sigma`` mm."""
    return np.clip(0.5 - distance / np.float32(2.5 * sigma), 0, 1)


def tile_slices(tile: FloatArray, shape: tuple[int, ...]) -> Iterator[FloatArray]:
    """Repeat a periodic block to a larger volume, one slice at a time.

    Args:
        tile: the block (z, y, x).
        shape: shape of the volume (z, y, x).

    Yields:
        The slices (y, x) of the volume.
    """
    rows, columns = np.arange(shape[1]) % tile.shape[1], np.arange(shape[2]) % tile.shape[2]
    for z in range(shape[0]):
        yield tile[z % tile.shape[0]][rows][:, columns]
