"""Scans on isotropic grids, on which distances are the same along each axis."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from luna_monai.scans.geometry import Geometry

#: HU of what is outside the patient, of padding and of voxels without a value.
AIR_HU = -1024
#: Highest HU that is kept. Above are metal and beam hardening, which only blur what is near.
HIGHEST_HU = 1000


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
    image = sitk.GetImageFromArray(_whole_hu(volume[box]))
    # The scan's own axes, in mm from its first voxel: the direction plays no part in resampling along them.
    image.SetSpacing(geometry.spacing)
    start = np.array([part.start for part in box[::-1]], dtype=float) * geometry.spacing
    image.SetOrigin(start.tolist())
    extent = np.array(image.GetSize()) * geometry.spacing
    low = start - 0.5 * np.asarray(geometry.spacing)

    # A grid that is a hair too small for one more voxel gets it.
    size = np.maximum(1, np.floor(extent / spacing + 0.01)).astype(int)
    first = low + (extent - (size - 1) * spacing) / 2
    factors = [
        max(1, min(int(spacing / own), count)) for own, count in zip(geometry.spacing, image.GetSize(), strict=True)
    ]
    if max(factors) > 1:
        image = sitk.BinShrink(image, factors)

    resample = sitk.ResampleImageFilter()
    resample.SetSize(size.tolist())
    resample.SetOutputSpacing([spacing] * 3)
    resample.SetOutputOrigin(first.tolist())
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    result = sitk.GetArrayFromImage(resample.Execute(image))
    origin = geometry.index_to_world((first / geometry.spacing)[None, ::-1])[0]
    x, y, z = (int(value) for value in size)
    return result, Geometry(
        (x, y, z),
        (spacing, spacing, spacing),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        geometry.direction,
    )


def _whole_hu(volume: np.ndarray) -> np.ndarray:
    """Turn HU into int16 between ``AIR_HU`` and ``HIGHEST_HU``; what is not a number is air."""
    result = np.empty(volume.shape, dtype=np.int16)
    for layer, target in zip(volume, result, strict=True):
        if layer.dtype.kind == "f":
            layer = np.nan_to_num(layer, nan=AIR_HU, posinf=HIGHEST_HU, neginf=AIR_HU)
        target[...] = np.rint(np.clip(layer, AIR_HU, HIGHEST_HU))
    return result
