"""Turning the axes of a scan."""

from __future__ import annotations

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

_PAIRS = ({"L", "R"}, {"P", "A"}, {"S", "I"})


def check_orientation(orientation: str | None) -> str | None:
    """Check the name of an orientation.

    Args:
        orientation: three letters, such as ``"LPS"``, or None.

    Returns:
        The same.

    Raises:
        LunaError: when it is something else.
    """
    letters = orientation if isinstance(orientation, str) else ""
    if orientation is not None and not (len(letters) == 3 and all(len(pair & set(letters)) == 1 for pair in _PAIRS)):
        raise LunaError(f"orientation must be three letters such as LPS, or null, found {orientation!r}")
    return orientation


def orient(voxels: np.ndarray, geometry: Geometry, orientation: str = "LPS") -> tuple[np.ndarray, Geometry]:
    """Flip and permute the axes of a scan until they run, as nearly as possible, in the wanted directions.

    Nothing is resampled: an oblique scan stays oblique, and every voxel keeps its value and its position.

    Args:
        voxels: array (z, y, x).
        geometry: of the array.
        orientation: where the x, y and z axes lead; ``"LPS"`` is left, posterior, superior, as in LUNA16.

    Returns:
        The array, the same where its axes are right already, and its geometry.
    """
    from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

    wanted = axcodes2ornt(tuple(reversed(orientation)))
    change = ornt_transform(io_orientation(geometry.affine_ras_zyx), wanted)
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return voxels, geometry
    # The geometry is not taken from a product of affines, whose rounding moves points halfway between two voxels.
    order, flips = np.argsort(change[:, 0]), change[:, 1]
    first = np.where(flips < 0, np.asarray(voxels.shape) - 1, 0)
    axes = (np.asarray(geometry.direction).T[::-1] * flips[:, None])[order]  # a row for each new axis z, y, x
    turned = Geometry.from_header(
        np.asarray(geometry.shape)[order][::-1],
        np.asarray(geometry.spacing)[::-1][order][::-1],
        geometry.index_to_world(first)[0],
        axes[::-1].T,
        source="scan",
    )
    return np.ascontiguousarray(apply_orientation(voxels, change)), turned
