"""Where the voxels of a scan are in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from luna_monai.errors import LunaError

#: How far the axes of a scan may be from being perpendicular and of length 1; headers hold rounded cosines.
ORTHONORMAL_TOLERANCE = 1e-3
#: Limits of what CT scanners make, with much room; what is outside is in another unit than mm, or damaged.
SPACING_MM = (0.01, 50.0)
EXTENT_MM = 5000.0
ORIGIN_MM = 100_000.0


@dataclass(frozen=True)
class Geometry:
    """Size, place and orientation of a scan, in ITK's convention: axes in the order x, y, z and LPS mm.

    Args:
        size: voxels along x, y, z.
        spacing: distance of neighboring voxel centers along the scan's own x, y, z axes, in mm.
        origin: LPS position of the center of voxel (0, 0, 0), in mm.
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
            LunaError: when there are not three dimensions, a size or spacing is not positive or not that of a CT, a
                number is not finite, or the axes are not perpendicular unit vectors.
        """
        sizes = tuple(int(value) for value in np.ravel(np.asarray(size)))
        if len(sizes) != 3:
            raise LunaError(f"{source}: a scan has 3 dimensions, found {len(sizes)} ({' × '.join(map(str, sizes))})")
        spacings, origins, axes = (np.ravel(np.asarray(value, dtype=float)) for value in (spacing, origin, direction))
        matrix = axes.reshape(3, 3)
        # What is not a number fails each comparison.
        is_possible = min(sizes) >= 1 and SPACING_MM[0] <= spacings.min() and spacings.max() <= SPACING_MM[1]
        if not (is_possible and (spacings * sizes).max() <= EXTENT_MM and np.abs(origins).max() <= ORIGIN_MM):
            size_, spacing_, origin_ = (" ".join(f"{value:g}" for value in each) for each in (sizes, spacings, origins))
            found = f"found a size of {size_} voxels, a spacing of {spacing_} mm and an origin of {origin_} mm"
            raise LunaError(f"{source}: no CT has such a geometry; check the header's values and their unit, {found}")
        if not np.allclose(matrix.T @ matrix, np.eye(3), rtol=0, atol=ORTHONORMAL_TOLERANCE):
            rule = "the axes of the scan must be perpendicular unit vectors; resample the scan onto a rectangular grid"
            raise LunaError(f"{source}: {rule}, found {' '.join(f'{value:g}' for value in axes)}")
        x, y, z = (tuple(map(float, row)) for row in matrix)
        return cls(sizes, tuple(map(float, spacings)), tuple(map(float, origins)), (x, y, z))  # type: ignore[arg-type]

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
            (n, 3) int64 array indices z, y, x. Halves are rounded to the even neighbor. A point outside the scan has
            an index outside ``shape``.
        """
        return np.round(self.world_to_continuous_index(points)).astype(np.int64)

    def world_to_continuous_index(self, points: np.ndarray) -> np.ndarray:
        """Find where points in the patient are between voxel centers.

        Args:
            points: (n, 3) LPS positions x, y, z in mm.

        Returns:
            (n, 3) float64 array indices z, y, x.
        """
        offsets = np.asarray(points, dtype=float).reshape(-1, 3) - self.origin
        along_axes = offsets @ np.linalg.inv(np.asarray(self.direction)).T / self.spacing
        return along_axes[:, ::-1]

    def index_to_world(self, indices: np.ndarray) -> np.ndarray:
        """Find where voxels, or points between voxel centers, are in the patient.

        Args:
            indices: (n, 3) array indices z, y, x, which may be fractions.

        Returns:
            (n, 3) float64 LPS positions x, y, z in mm.
        """
        steps = np.asarray(indices, dtype=float).reshape(-1, 3)[:, ::-1] * self.spacing
        return steps @ np.asarray(self.direction).T + self.origin


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
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    change = ornt_transform(io_orientation(geometry.affine_ras_zyx), axcodes2ornt(tuple(reversed(orientation))))
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return voxels, geometry
    # The geometry is not taken from a product of affines, whose rounding moves points halfway between two voxels.
    old_of_new = inv_ornt_aff(change, voxels.shape)
    turn = old_of_new[2::-1, 2::-1]  # x, y, z: a permutation with signs
    turned = Geometry.from_header(
        np.abs(turn).T @ geometry.size,
        np.abs(turn).T @ geometry.spacing,
        geometry.index_to_world(old_of_new[:3, 3])[0],
        np.asarray(geometry.direction) @ turn,
        source="scan",
    )
    return np.ascontiguousarray(apply_orientation(voxels, change)), turned
