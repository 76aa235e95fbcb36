"""Grids, and interpolation of fields from a coarse grid to voxels, one slice at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Points = NDArray[np.float64]
Vector = tuple[float, ...]


def cubic_weights(positions: Points, size: int) -> FloatArray:
    """Return the weights of Catmull-Rom interpolation, as a matrix to multiply with a field.

    Args:
        positions: where to interpolate, in units of the coarse grid.
        size: number of points of the coarse grid. Beyond its ends, the last value is repeated.

    Returns:
        Weights (len(positions), size).
    """
    base = np.floor(positions).astype(int)
    t = positions - base
    taps = (
        -0.5 * t + t**2 - 0.5 * t**3,
        1 - 2.5 * t**2 + 1.5 * t**3,
        0.5 * t + 2 * t**2 - 1.5 * t**3,
        -0.5 * t**2 + 0.5 * t**3,
    )
    weights = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    for offset, tap in enumerate(taps, start=-1):
        np.add.at(weights, (rows, np.clip(base + offset, 0, size - 1)), tap)
    return weights.astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: Iterable[int]) -> FloatArray:
    """Draw smooth noise of about unit variance.

    Args:
        rng: random number generator.
        shape: number of points (z, y, x).
        cells: number of independent values along (z, y, x); more values make rougher noise.

    Returns:
        Noise (z, y, x).
    """
    field = rng.standard_normal([max(cell, 1) + 1 for cell in cells], dtype=np.float32) * np.float32(1.25)
    for axis, size in enumerate(shape):
        weights = cubic_weights(np.linspace(0, field.shape[axis] - 1, size), field.shape[axis])
        field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field, dtype=np.float32)


@dataclass(frozen=True)
class Grid:
    """A regular grid in patient coordinates in mm (x to the left, y to the back, z to the head).

    Args:
        start: position of the first point (x, y, z), mm.
        step: signed distance between points along (x, y, z), mm.
        shape: number of points (z, y, x).
    """

    start: Vector
    step: Vector
    shape: tuple[int, ...]

    def axis(self, dimension: int) -> Points:
        """Return the positions of the points along x (0), y (1) or z (2), mm."""
        return self.start[dimension] + self.step[dimension] * np.arange(self.shape[2 - dimension], dtype=np.float64)

    def axes(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return x (1, 1, nx), y (1, ny, 1) and z (nz, 1, 1), mm."""
        z, y, x = np.ix_(*(self.axis(dimension).astype(np.float32) for dimension in (2, 1, 0)))
        return x, y, z

    @property
    def box(self) -> tuple[Points, Points]:
        """Lowest and highest position of a point (x, y, z), mm."""
        ends = np.array([self.axis(dimension)[[0, -1]] for dimension in range(3)])
        return ends.min(axis=1), ends.max(axis=1)

    def points_where(self, mask: NDArray[np.bool_]) -> Points:
        """Return the positions (n, 3) of the points of a mask, (x, y, z) in mm."""
        return np.argwhere(mask)[:, ::-1] * np.asarray(self.step) + np.asarray(self.start)

    def to_index(self, points: Points) -> Points:
        """Convert positions (n, 3), (x, y, z) in mm, to continuous indices (z, y, x)."""
        return np.asarray((points - np.asarray(self.start)) / np.asarray(self.step))[:, ::-1]

    def value_at(self, field: FloatArray, points: Points) -> Points:
        """Return a field's value at the grid point nearest to each of ``points`` (n, 3), (x, y, z) in mm."""
        index = np.clip(np.rint(self.to_index(points)).astype(int), 0, np.asarray(self.shape) - 1)
        return field[index[:, 0], index[:, 1], index[:, 2]].astype(np.float64)

    def contains(self, points: Points, margin: float = 0.0) -> NDArray[np.bool_]:
        """Return which of ``points`` (n, 3), (x, y, z) in mm, are at least ``margin`` mm inside the grid's box."""
        low, high = self.box
        return np.all((points >= low + margin) & (points <= high - margin), axis=1)

    @classmethod
    def covering(cls, low: Points, high: Points, step: float) -> Grid:
        """Return a grid of ``step`` mm over the box from ``low`` to ``high`` (x, y, z), mm."""
        nx, ny, nz = (np.ceil((high - low) / step).astype(int) + 1).tolist()
        return cls(tuple(low.tolist()), (step, step, step), (nz, ny, nx))


class SliceSampler:
    """Interpolation of the fields of a coarse grid at slices of voxels.

    Args:
        coarse: the grid of the fields.
        voxels: the voxels.
    """

    def __init__(self, coarse: Grid, voxels: Grid) -> None:
        weights = [
            cubic_weights((voxels.axis(d) - coarse.start[d]) / coarse.step[d], coarse.shape[2 - d]) for d in range(3)
        ]
        self._x, self._y, self._z = np.ascontiguousarray(weights[0].T), weights[1], weights[2]

    def slice(self, field: FloatArray, z: int) -> FloatArray:
        """Return the values (y, x) of a coarse ``field`` at the voxels of slice ``z``."""
        used = np.flatnonzero(self._z[z])
        return self._y @ np.tensordot(self._z[z, used], field[used], axes=1) @ self._x
