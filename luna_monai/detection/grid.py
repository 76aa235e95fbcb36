"""Scans on isotropic grids, on which distances are the same along each axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_monai.scans.geometry import Geometry

#: HU of what is outside the patient and of padding, and the highest HU that are kept. Above are metal and beam
#: hardening, which only blur what is near.
LIMITS_HU = (-1024, 1000)
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
    return grid_at(geometry, first[::-1], size[::-1], spacing)


def grid_at(geometry: Geometry, first: Any, shape: Any, spacing: float | None = None) -> Geometry:
    """Lay a grid along the axes of another one.

    Args:
        geometry: the other grid.
        first: where the first voxel lies in it, a continuous index z, y, x.
        shape: of the new grid, z, y, x.
        spacing: of the new grid, mm; None for that of the other one.
    """
    size: Any = tuple(map(int, shape[::-1]))
    origin: Any = tuple(geometry.index_to_world(first)[0].tolist())
    return replace(geometry, size=size, spacing=(spacing,) * 3 if spacing else geometry.spacing, origin=origin)


def to_image(values: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Make an ITK image of an array (z, y, x) and its geometry."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ravel(geometry.direction).tolist())
    return image


def resample(volume: np.ndarray, geometry: Geometry, grid: Geometry) -> NDArray[np.int16]:
    """Resample a scan to a grid along its own axes.

    Voxels that are much smaller than the new ones are averaged first, so that their noise does not alias; between
    voxels it is interpolated linearly.

    Args:
        volume: HU (z, y, x), whole numbers or floats.
        geometry: of the scan.
        grid: isotropic, see :func:`isotropic_grid`.

    Returns:
        Whole HU (z, y, x) within ``LIMITS_HU``.
    """
    geometry = _rounded(geometry)
    steps = np.divide(grid.spacing, geometry.spacing)[::-1]
    factors = np.clip((steps + 0.01).astype(int), 1, geometry.shape)
    result = np.empty(grid.shape, dtype=np.int16)
    for top in range(0, len(result), _SLICES):
        target = result[top : top + _SLICES]
        slab = grid_at(grid, [top, 0, 0], target.shape)
        first = geometry.world_to_continuous_index(np.array([slab.origin]))[0]
        # The voxels of the scan that these are made of, averaged by whole numbers of voxels.
        low = np.maximum(0, factors * (np.floor(first / factors).astype(int) - 2))
        high = factors * (np.ceil((first + steps * target.shape) / factors).astype(int) + 2)
        part = np.clip(volume[tuple(map(slice, low, high))], *LIMITS_HU)
        # Rounding whole numbers would take longer than all the rest.
        part = part if part.dtype == np.int16 else part.round().astype(np.int16)
        image = to_image(part, grid_at(geometry, low, part.shape))
        image = sitk.BinShrink(image, factors[::-1].tolist())
        place = (slab.size, sitk.Transform(), sitk.sitkLinear, slab.origin, slab.spacing, image.GetDirection())
        image = sitk.Resample(image, *place, 0.0, sitk.sitkFloat32, True)  # outside, the nearest voxel counts
        target[...] = np.floor(sitk.GetArrayFromImage(image) + _ROUNDING)
    return result


def interpolate(array: np.ndarray, first: Any, steps: np.ndarray, shape: Any) -> NDArray[np.float32]:
    """Interpolate linearly, axis by axis: several times as fast as ITK and SciPy in small boxes.

    Args:
        array: what is interpolated.
        first: where the first new voxel is, an index for each axis; outside the nearest voxel counts.
        steps: from a new voxel to the next, for each axis.
        shape: of the result.
    """
    axes = zip(first, steps, shape, array.shape, strict=True)
    places = [np.clip(start + step * np.arange(size), 0, length - 1) for start, step, size, length in axes]
    array = array[tuple(slice(int(at[0]), int(at[-1]) + 2) for at in places)].astype(np.float32)
    for axis, at in enumerate(places):
        low, high = (end.astype(int) - int(at[0]) for end in (at, np.ceil(at)))
        share = np.reshape(at % 1, [-1 if k == axis else 1 for k in range(3)]).astype(np.float32)
        array = array.take(low, axis) * (1 - share) + array.take(high, axis) * share
    return array


def _rounded(geometry: Geometry) -> Geometry:
    """Round the spacing to a nanometer: formats that store float32 then give the same voxels as those with text."""
    spacing: Any = tuple(round(step, 6) for step in geometry.spacing)
    return replace(geometry, spacing=spacing)
