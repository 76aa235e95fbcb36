"""Scans on isotropic grids, on which distances are the same along each axis."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from luna_monai.scans.geometry import Geometry

#: HU of what is outside the patient, of padding and of voxels without a value.
AIR_HU = -1024
#: Highest HU that is kept. Above are metal and beam hardening, which only blur what is near.
HIGHEST_HU = 1000
#: Slices of the new grid that are made at once; the scan is never copied as a whole.
_SLICES = 32


def resample_isotropic(
    volume: np.ndarray, geometry: Geometry, spacing: float, *, box: tuple[slice, slice, slice] | None = None
) -> tuple[np.ndarray, Geometry]:
    """Resample a scan, or a box of it, to cubic voxels along the scan's own axes.

    Voxels that are much smaller than the new ones are averaged first, so that their noise does not alias; between
    voxels it is interpolated linearly. The grid lies in the middle of the box, whichever way the axes run.

    Args:
        volume: HU (z, y, x), whole numbers or floats.
        geometry: of the scan.
        spacing: of the new voxels, mm.
        box: which voxels, as slices z, y, x with a start and a stop; the whole scan when None.

    Returns:
        int16 HU (z, y, x) between ``AIR_HU`` and ``HIGHEST_HU``, and the geometry of the new grid, which maps its
        indices to LPS mm.
    """
    box = box or (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2]))
    part = volume[box]
    # The scan's own axes x, y, z, in mm from its first voxel: the direction plays no part in resampling along them.
    own = np.asarray(geometry.spacing)
    start = np.array([one.start for one in box[::-1]]) * own
    extent = np.array(part.shape[::-1]) * own
    # A grid that is a hair too small for one more voxel gets it.
    size = np.maximum(1, np.floor(extent / spacing + 0.01)).astype(int)
    first = start - 0.5 * own + (extent - (size - 1) * spacing) / 2
    factors = np.clip((spacing / own).astype(int), 1, part.shape[::-1]).tolist()

    resample = sitk.ResampleImageFilter()
    resample.SetOutputSpacing([spacing] * 3)
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    result = np.empty(size[::-1], dtype=np.int16)
    for top in range(0, len(result), _SLICES):
        target = result[top : top + _SLICES]
        origin = first + np.array([0, 0, top * spacing])
        # The slices of the scan that these are made of, averaged by whole numbers of slices.
        around = (origin[2] + np.array([0, (len(target) - 1) * spacing]) - start[2]) / (own[2] * factors[2])
        low, high = factors[2] * max(0, int(around[0]) - 2), factors[2] * (int(around[1]) + 3)
        image = sitk.GetImageFromArray(_whole_hu(part[low:high]))
        image.SetSpacing(geometry.spacing)
        image.SetOrigin((start + np.array([0, 0, low * own[2]])).tolist())
        if max(factors) > 1:
            image = sitk.BinShrink(image, factors)
        resample.SetSize(target.shape[::-1])
        resample.SetOutputOrigin(origin.tolist())
        target[...] = sitk.GetArrayFromImage(resample.Execute(image))
    corner = geometry.index_to_world((first / geometry.spacing)[None, ::-1])[0]
    x, y, z = (int(value) for value in size)
    return result, Geometry(
        (x, y, z),
        (spacing, spacing, spacing),
        (float(corner[0]), float(corner[1]), float(corner[2])),
        geometry.direction,
    )


def _whole_hu(volume: np.ndarray) -> np.ndarray:
    """Turn HU into int16 between ``AIR_HU`` and ``HIGHEST_HU``; what is not a number is air."""
    result = np.empty(volume.shape, dtype=np.int16)
    for layer, target in zip(volume, result, strict=True):
        if layer.dtype.kind == "f":
            layer = np.nan_to_num(layer, nan=AIR_HU, posinf=HIGHEST_HU, neginf=AIR_HU)
            target[...] = np.rint(np.clip(layer, AIR_HU, HIGHEST_HU))
        else:
            target[...] = np.clip(layer, AIR_HU, HIGHEST_HU)
    return result
