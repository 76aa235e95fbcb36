"""Scans on isotropic grids, on which distances are the same along each axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_monai.scans.geometry import Geometry

#: HU of what is outside the patient and of padding.
AIR_HU = -1024
#: Highest HU that is kept. Above are metal and beam hardening, which only blur what is near.
HIGHEST_HU = 1000
#: Slices of the new grid that are made at once; the scan is never copied as a whole.
_SLICES = 32
#: Rounding to whole HU: where interpolated values, often whole numbers or halves, are far from the edge of two results.
_ROUNDING = 0.41


def isotropic_grid(geometry: Geometry, spacing: float) -> Geometry:
    """Lay a grid of cubic voxels into the middle of a scan, along the scan's own axes.

    Args:
        geometry: of the scan.
        spacing: of the grid, mm.

    Returns:
        The geometry of the grid, which maps its indices to LPS mm.
    """
    geometry = _rounded(geometry)
    own = np.array(geometry.spacing)
    extent = own * geometry.size
    # A grid that is a hair too small for one more voxel gets it.
    size = np.maximum(1, np.floor(extent / spacing + 0.01)).astype(int)
    first = (extent - (size - 1) * spacing) / 2 / own - 0.5
    return grid_at(geometry, first[::-1], size.tolist(), spacing)


def grid_at(geometry: Geometry, first: np.ndarray, size: Any, spacing: float) -> Geometry:
    """Lay a grid of cubic voxels along the axes of another one, whose continuous index z, y, x is its first voxel."""
    origin: Any = tuple(geometry.index_to_world(first[None])[0].tolist())
    return replace(geometry, size=tuple(size), spacing=(spacing,) * 3, origin=origin)


def resample(volume: np.ndarray, geometry: Geometry, grid: Geometry) -> NDArray[np.int16]:
    """Resample a scan to a grid along its own axes.

    Voxels that are much smaller than the new ones are averaged first, so that their noise does not alias; between
    voxels it is interpolated linearly.

    Args:
        volume: HU (z, y, x), whole numbers or floats.
        geometry: of the scan.
        grid: isotropic, see :func:`isotropic_grid`.

    Returns:
        HU (z, y, x) between ``AIR_HU`` and ``HIGHEST_HU``.
    """
    geometry = _rounded(geometry)
    own, shape = np.array(geometry.spacing[::-1]), np.array(geometry.shape)
    steps = grid.spacing[0] / own
    factors = np.clip((steps + 0.01).astype(int), 1, shape)
    filter_ = sitk.ResampleImageFilter()
    filter_.SetOutputSpacing(grid.spacing)
    filter_.SetOutputPixelType(sitk.sitkFloat32)
    filter_.UseNearestNeighborExtrapolatorOn()
    result = np.empty(grid.shape, dtype=np.int16)
    for top in range(0, len(result), _SLICES):
        target = result[top : top + _SLICES]
        first = geometry.world_to_continuous_index(np.array([grid.origin]))[0] + [top * steps[0], 0, 0]
        # The voxels of the scan that these are made of, averaged by whole numbers of voxels.
        low = np.maximum(0, factors * (np.floor(first / factors).astype(int) - 2))
        high = factors * (np.ceil((first + steps * target.shape) / factors).astype(int) + 2)
        image = sitk.GetImageFromArray(_whole_hu(volume[tuple(map(slice, low, high))]))
        image.SetSpacing(geometry.spacing)
        image.SetOrigin((low * own)[::-1].tolist())
        if factors.max() > 1:
            image = sitk.BinShrink(image, factors[::-1].tolist())
        filter_.SetSize(target.shape[::-1])
        filter_.SetOutputOrigin((first * own)[::-1].tolist())
        target[...] = np.floor(sitk.GetArrayFromImage(filter_.Execute(image)) + _ROUNDING)
    return result


def interpolate(
    array: NDArray[np.float32], first: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Interpolate linearly, axis by axis: several times as fast as SciPy's, which is for axes at any angle.

    Args:
        array: what is interpolated.
        first: where the first new voxel is, an index for each axis; outside the nearest voxel counts.
        steps: from a new voxel to the next, for each axis.
        shape: of the result.
    """
    for axis, (start, step, size) in enumerate(zip(first, steps, shape, strict=True)):
        at = np.clip(start + step * np.arange(size), 0, array.shape[axis] - 1)
        low = at.astype(int)
        share = np.reshape(at - low, [-1 if k == axis else 1 for k in range(3)]).astype(np.float32)
        array = array.take(low, axis) * (1 - share) + array.take(np.ceil(at).astype(int), axis) * share
    return array


def _rounded(geometry: Geometry) -> Geometry:
    """Round the spacing to a nanometer: formats that store float32 then give the same voxels as those with text."""
    spacing: Any = tuple(round(step, 6) for step in geometry.spacing)
    return replace(geometry, spacing=spacing)


def _whole_hu(volume: np.ndarray) -> NDArray[np.int16]:
    """Turn HU into int16 between ``AIR_HU`` and ``HIGHEST_HU``."""
    if volume.dtype.kind == "f":
        volume = np.rint(volume)
    return np.clip(volume, AIR_HU, HIGHEST_HU).astype(np.int16)
