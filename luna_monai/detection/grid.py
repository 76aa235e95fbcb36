"""Resampling of scans to isotropic grids."""

from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from luna_monai.scans.geometry import Geometry

#: Values are clipped to this range, HU. Values above it are metal and artifacts, which would blur their surroundings.
LIMITS_HU = (-1024, 1000)
#: Number of slices of the new grid that are computed at a time, so that the scan is never copied as a whole.
_SLICES = 16
#: Added before rounding down to whole HU. Interpolated values are often multiples of 0.5, so that adding 0.5 would make
#: the result depend on floating-point errors.
_ROUNDING = 0.41


def isotropic_grid(geometry: Geometry, spacing: float) -> Geometry:
    """Make a grid of cubic voxels that is centered in a scan and parallel to its axes.

    Args:
        geometry: geometry of the scan.
        spacing: spacing of the grid, mm.

    Returns:
        The geometry of the grid.
    """
    geometry = _rounded(geometry)
    own = np.array(geometry.spacing)
    extent = own * geometry.size
    # The tolerance absorbs rounding errors of the spacing.
    size = np.maximum(1, np.floor(extent / spacing + 0.01)).astype(int)
    return grid_at(geometry, ((extent - (size - 1) * spacing) / 2 / own - 0.5)[::-1], size[::-1], spacing)


def grid_at(geometry: Geometry, first: Any, shape: Any, spacing: float | None = None) -> Geometry:
    """Make a grid that is parallel to the axes of another grid.

    Args:
        geometry: the other grid.
        first: position of the first voxel, as a continuous index z, y, x of the other grid.
        shape: shape of the new grid, z, y, x.
        spacing: spacing of the new grid, mm; None for the spacing of the other grid.

    Returns:
        The geometry of the new grid.
    """
    size: Any = tuple(map(int, shape[::-1]))
    origin: Any = tuple(geometry.index_to_world(first)[0].tolist())
    return replace(geometry, size=size, spacing=(spacing,) * 3 if spacing else geometry.spacing, origin=origin)


def to_image(values: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Make a SimpleITK image from an array (z, y, x) and its geometry."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ravel(geometry.direction).tolist())
    return image


def resample(volume: np.ndarray, geometry: Geometry, grid: Geometry) -> NDArray[np.int16]:
    """Resample a scan to a grid that is parallel to its axes.

    Blocks of voxels that are much smaller than the new ones are averaged first, to avoid aliasing of noise. The result
    is then interpolated linearly.

    Args:
        volume: HU (z, y, x), integers or floats.
        geometry: geometry of the scan.
        grid: isotropic grid, see :func:`isotropic_grid`.

    Returns:
        HU, int16 (z, y, x), within ``LIMITS_HU``.
    """
    geometry = _rounded(geometry)
    steps = np.divide(grid.spacing, geometry.spacing)[::-1]
    factors = np.clip((steps + 0.01).astype(int), 1, geometry.shape)
    result = np.empty(grid.shape, dtype=np.int16)
    for top in range(0, len(result), _SLICES):
        target = result[top : top + _SLICES]
        slab = grid_at(grid, [top, 0, 0], target.shape)
        first = geometry.world_to_continuous_index(np.array([slab.origin]))[0]
        # The part of the scan that covers these slices, in whole blocks of averaged voxels.
        low = np.maximum(0, factors * (np.floor(first / factors).astype(int) - 2))
        high = factors * (np.ceil((first + steps * target.shape) / factors).astype(int) + 2)
        part = np.clip(volume[tuple(map(slice, low, high))], *LIMITS_HU)
        # Integers need no rounding, which would take most of the time.
        part = part if part.dtype == np.int16 else part.round().astype(np.int16)
        image = to_image(part, grid_at(geometry, low, part.shape))
        image = sitk.BinShrink(image, factors[::-1].tolist())
        place = (slab.size, sitk.Transform(), sitk.sitkLinear, slab.origin, slab.spacing, image.GetDirection())
        image = sitk.Resample(image, *place, 0.0, sitk.sitkFloat32, True)  # extrapolates by the nearest voxel
        target[...] = np.floor(sitk.GetArrayFromImage(image) + _ROUNDING)
    return result


def interpolate(array: np.ndarray, first: Any, steps: np.ndarray, shape: Any) -> NDArray[np.float32]:
    """Interpolate linearly, axis by axis. In small boxes this is several times as fast as ITK and SciPy.

    Args:
        array: the values (z, y, x).
        first: continuous index z, y, x of the first new voxel. Positions outside the array get the nearest voxel.
        steps: distance between new voxels along each axis, in voxels of the array.
        shape: shape of the result, z, y, x.

    Returns:
        The interpolated values, float32.
    """
    axes = zip(first, steps, shape, array.shape, strict=True)
    places = [np.clip(start + step * np.arange(size), 0, length - 1) for start, step, size, length in axes]
    array = array[tuple(slice(int(at[0]), int(at[-1]) + 2) for at in places)].astype(np.float32)
    for axis, at in enumerate(places):
        low, high = (end.astype(int) - int(at[0]) for end in (at, np.ceil(at)))
        weight = np.reshape(at % 1, [-1 if k == axis else 1 for k in range(3)]).astype(np.float32)
        array = array.take(low, axis) * (1 - weight) + array.take(high, axis) * weight
    return array


def grown(box: tuple[slice, ...], margin: int) -> tuple[slice, ...]:
    """Enlarge a box by a margin; beyond the end of an array, slices are cut anyway."""
    return tuple(slice(max(0, part.start - margin), part.stop + margin) for part in box)


def _rounded(geometry: Geometry) -> Geometry:
    """Round the spacing to 1 nm, so that file formats with float32 and with text headers give the same voxels."""
    spacing: Any = tuple(round(step, 6) for step in geometry.spacing)
    return replace(geometry, spacing=spacing)
