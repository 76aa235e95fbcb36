"""Where the voxels of a scan are in the patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.utils import MetaKeys, SpaceKeys

from luna_monai.errors import LunaError

#: How far the axes of a scan may be from being perpendicular and of length 1; headers hold rounded cosines.
ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Geometry:
    """Size, place and orientation of a scan, in ITK's convention: axes in the order x, y, z and LPS mm.

    Args:
        size: voxels along x, y, z.
        spacing: distance of neighbouring voxel centres along the scan's own x, y, z axes, in mm.
        origin: LPS position of the centre of voxel (0, 0, 0), in mm.
        direction: 3x3 matrix in rows; its columns are the unit vectors of the scan's x, y, z axes in LPS.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]

    @classmethod
    def from_header(
        cls, size: object, spacing: object, origin: object, direction: object, *, source: object
    ) -> Geometry:
        """Check the values of a file's header and make a geometry of them.

        Args:
            size: three whole numbers, x, y, z.
            spacing: three numbers, mm.
            origin: three numbers, LPS mm.
            direction: nine numbers, the direction matrix row by row.
            source: the file, for the message.

        Returns:
            The geometry.

        Raises:
            LunaError: when there are not three dimensions, a size or spacing is not positive, a number is not finite,
                or the axes are not perpendicular unit vectors.
        """
        sizes = tuple(int(value) for value in np.ravel(np.asarray(size)))
        if len(sizes) != 3:
            raise LunaError(f"{source}: a scan has 3 dimensions, found {len(sizes)} ({' × '.join(map(str, sizes))})")
        if min(sizes) < 1:
            raise LunaError(f"{source}: the size must be positive along each axis, found {' × '.join(map(str, sizes))}")
        spacings = np.ravel(np.asarray(spacing, dtype=float))
        origins = np.ravel(np.asarray(origin, dtype=float))
        matrix = np.asarray(direction, dtype=float).reshape(3, 3)
        if len(spacings) != 3 or not np.isfinite(spacings).all() or (spacings <= 0).any():
            found = " ".join(f"{value:g}" for value in spacings)
            raise LunaError(f"{source}: the spacing must be three positive numbers in mm, found {found}")
        if len(origins) != 3 or not np.isfinite(origins).all():
            found = " ".join(f"{value:g}" for value in origins)
            raise LunaError(f"{source}: the origin must be three numbers in mm, found {found}")
        # The comparison is written so that a direction that is not a number fails it.
        if not np.abs(matrix.T @ matrix - np.eye(3)).max() <= ORTHONORMAL_TOLERANCE:
            found = " ".join(f"{value:g}" for value in matrix.ravel())
            raise LunaError(
                f"{source}: the axes of the scan must be perpendicular unit vectors, found the direction {found}; "
                "resample the scan onto a rectangular grid"
            )
        x, y, z = (tuple(map(float, row)) for row in matrix)
        return cls(sizes, tuple(map(float, spacings)), tuple(map(float, origins)), (x, y, z))  # type: ignore[arg-type]

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Geometry:
        """Take the geometry from the metadata of a scan that was loaded with ``SimpleITKReader``.

        Its numbers are those of the file's header. Those in the affine are rounded differently, which moves a point
        halfway between two voxels to the other one.

        Args:
            meta: ``MetaTensor.meta`` of an image (z, y, x), with or without a channel in front.

        Returns:
            The geometry.

        Raises:
            LunaError: when the metadata come from another reader, or the affine says that the image was turned,
                resampled or cropped since.
        """
        source = meta.get("filename_or_obj", "image")
        missing = [key for key in ("spatial_shape", "spacing", "origin", "direction") if key not in meta]
        if missing:
            raise LunaError(f"{source}: no {', '.join(missing)} in its metadata; load it with reader: SimpleITKReader")
        size = tuple(int(value) for value in meta["spatial_shape"])[::-1]
        geometry = cls.from_header(size, meta["spacing"], meta["origin"], meta["direction"], source=source)
        if not np.allclose(np.asarray(meta.get("affine", geometry.affine_ras_zyx)), geometry.affine_ras_zyx):
            raise LunaError(
                f"{source}: its affine is no longer that of the file; cut candidates before transforms that turn, "
                "resample or crop the scan"
            )
        return geometry

    def to_meta(self) -> dict[str, Any]:
        """Make the metadata that MONAI and :meth:`from_meta` need.

        Returns:
            ``affine`` and ``original_affine`` ((4, 4), z, y, x indices to RAS mm), ``spatial_shape`` (z, y, x),
            ``space``, ``original_channel_dim``, and, as ITK's reader has them, ``spacing``, ``origin`` and
            ``direction`` (LPS, x, y, z).
        """
        return {
            str(MetaKeys.ORIGINAL_AFFINE): self.affine_ras_zyx,
            str(MetaKeys.AFFINE): self.affine_ras_zyx,
            str(MetaKeys.SPACE): str(SpaceKeys.RAS),
            str(MetaKeys.SPATIAL_SHAPE): np.asarray(self.shape),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): float("nan"),  # MONAI's sign for "no channel"
            "spacing": np.asarray(self.spacing),
            "origin": np.asarray(self.origin),
            "direction": np.asarray(self.direction),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the array of voxels."""
        x, y, z = self.size
        return z, y, x

    @property
    def affine_ras_zyx(self) -> np.ndarray:
        """The (4, 4) float64 matrix from array indices (z, y, x) to RAS mm, the world of MONAI and NIfTI."""
        affine = np.eye(4)
        # Columns in the order of the array's axes; the first two rows change sign from LPS to RAS.
        affine[:3, :3] = (np.asarray(self.direction) * self.spacing)[:, ::-1]
        affine[:3, 3] = self.origin
        affine[:2] *= -1
        return affine

    def world_to_index(self, points: np.ndarray) -> np.ndarray:
        """Find the voxels nearest to points in the patient, as the book does (chapter 10.3).

        Args:
            points: (n, 3) LPS positions x, y, z in mm.

        Returns:
            (n, 3) int64 array indices z, y, x. Halves are rounded to the even neighbour. A point outside the scan has
            an index outside ``shape``.
        """
        return np.round(self.world_to_continuous_index(points)).astype(np.int64)

    def world_to_continuous_index(self, points: np.ndarray) -> np.ndarray:
        """Find where points in the patient are between voxel centres.

        Args:
            points: (n, 3) LPS positions x, y, z in mm.

        Returns:
            (n, 3) float64 array indices z, y, x.
        """
        offsets = np.asarray(points, dtype=float).reshape(-1, 3) - self.origin
        along_axes = offsets @ np.linalg.inv(np.asarray(self.direction)).T / self.spacing
        return along_axes[:, ::-1]

    def index_to_world(self, indices: np.ndarray) -> np.ndarray:
        """Find where voxels, or points between voxel centres, are in the patient.

        Args:
            indices: (n, 3) array indices z, y, x, which may be fractions.

        Returns:
            (n, 3) float64 LPS positions x, y, z in mm.
        """
        steps = np.asarray(indices, dtype=float).reshape(-1, 3)[:, ::-1] * self.spacing
        return steps @ np.asarray(self.direction).T + self.origin
