"""Geometry of a scan: the positions of its voxels in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from luna_monai.errors import LunaError

#: Tolerance for axes that are not exactly perpendicular or of length 1, because headers contain rounded cosines.
ORTHONORMAL_TOLERANCE = 1e-3
#: Generous limits for the geometry of a CT. Values outside of them are damaged, or in another unit than mm.
SPACING_MM = (0.01, 50.0)
EXTENT_MM = 5000.0
ORIGIN_MM = 100_000.0


@dataclass(frozen=True)
class Geometry:
    """Size, position and orientation of a scan, in ITK's convention: axis order x, y, z, and LPS positions in mm.

    Args:
        size: number of voxels along x, y, z.
        spacing: distance between neighboring voxel centers along the scan's x, y, z axes, in mm.
        origin: LPS position of the center of voxel (0, 0, 0), in mm.
        direction: rows of a 3x3 matrix, whose columns are the unit vectors of the scan's x, y, z axes in LPS.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[tuple[float, float, float], ...]

    @classmethod
    def from_header(
        cls, size: object, spacing: object, origin: object, direction: object, *, source: object
    ) -> Geometry:
        """Create a geometry from the values of a file's header, after checking them.

        Args:
            size: three integers, x, y, z.
            spacing: three numbers, x, y, z, in mm.
            origin: three numbers, x, y, z, LPS in mm.
            direction: nine numbers, the direction matrix row by row.
            source: the file, for error messages.

        Returns:
            The geometry.

        Raises:
            LunaError: when there are not three dimensions, a value is not finite or not in the range of CTs, or the
                axes are not perpendicular unit vectors.
        """
        sizes = tuple(int(value) for value in np.ravel(np.asarray(size)))
        if len(sizes) != 3:
            raise LunaError(f"{source}: a scan has 3 dimensions, found {len(sizes)} ({' × '.join(map(str, sizes))})")
        spacings, origins, axes = (np.ravel(np.asarray(value, dtype=float)) for value in (spacing, origin, direction))
        matrix = axes.reshape(3, 3)
        # Comparisons with NaN are False.
        is_possible = min(sizes) >= 1 and SPACING_MM[0] <= spacings.min() and spacings.max() <= SPACING_MM[1]
        if not (is_possible and (spacings * sizes).max() <= EXTENT_MM and np.abs(origins).max() <= ORIGIN_MM):
            size_, spacing_, origin_ = (" ".join(f"{value:g}" for value in each) for each in (sizes, spacings, origins))
            found = f"found a size of {size_} voxels, a spacing of {spacing_} mm and an origin of {origin_} mm"
            raise LunaError(f"{source}: not the geometry of a CT; check the header's values and their unit, {found}")
        if not np.allclose(matrix.T @ matrix, np.eye(3), rtol=0, atol=ORTHONORMAL_TOLERANCE):
            rule = "the axes of the scan must be perpendicular unit vectors; resample the scan onto a rectangular grid"
            raise LunaError(f"{source}: {rule}, found {' '.join(f'{value:g}' for value in axes)}")
        x, y, z = (tuple(map(float, row)) for row in matrix)
        return cls(sizes, tuple(map(float, spacings)), tuple(map(float, origins)), (x, y, z))  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the voxel array."""
        x, y, z = self.size
        return z, y, x

    @property
    def affine_ras_zyx(self) -> np.ndarray:
        """The (4, 4) float64 matrix from array indices (z, y, x) to RAS mm, the convention of MONAI and NIfTI."""
        affine = np.eye(4)
        # Columns in the order of the array's axes; the first two rows change sign from LPS to RAS.
        affine[:3, :3] = (np.asarray(self.direction) * self.spacing)[:, ::-1]
        affine[:3, 3] = self.origin
        affine[:2] *= -1
        return affine

    def world_to_index(self, points: np.ndarray) -> np.ndarray:
        """Convert world positions to the indices of the nearest voxels, as the book does (chapter 10.3).

        Args:
            points: (n, 3) LPS positions x, y, z in mm.

        Returns:
            (n, 3) int64 array indices z, y, x. Halves are rounded to even. A point outside the scan has an index
            outside ``shape``.
        """
        return np.round(self.world_to_continuous_index(points)).astype(np.int64)

    def world_to_continuous_index(self, points: np.ndarray) -> np.ndarray:
        """Convert world positions to continuous array indices, which are integers at voxel centers.

        Args:
            points: (n, 3) LPS positions x, y, z in mm.

        Returns:
            (n, 3) float64 array indices z, y, x.
        """
        offsets = np.asarray(points, dtype=float).reshape(-1, 3) - self.origin
        return (offsets @ np.linalg.inv(np.asarray(self.direction)).T / self.spacing)[:, ::-1]

    def index_to_world(self, indices: np.ndarray) -> np.ndarray:
        """Convert array indices to world positions.

        Args:
            indices: (n, 3) array indices z, y, x, integers or continuous.

        Returns:
            (n, 3) float64 LPS positions x, y, z in mm.
        """
        steps = np.asarray(indices, dtype=float).reshape(-1, 3)[:, ::-1] * self.spacing
        return steps @ np.asarray(self.direction).T + self.origin


def orient(voxels: np.ndarray, geometry: Geometry, orientation: str = "LPS") -> tuple[np.ndarray, Geometry]:
    """Flip and permute the axes of a scan, so that they point as closely as possible in the given directions.

    Voxels are not resampled: an oblique scan stays oblique, and every voxel keeps its value and its world position.

    Args:
        voxels: array (z, y, x).
        geometry: geometry of the array.
        orientation: directions of the x, y and z axes; ``"LPS"`` is left, posterior, superior, as in LUNA16.

    Returns:
        The array and its geometry; both are unchanged if the axes already point in these directions.
    """
    if orientation == "LPS" and np.array_equal(geometry.direction, np.eye(3)):
        return voxels, geometry  # most scans; nibabel takes 0.1 s to import
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

    # Not ITK's DICOMOrient, which needs a copy of voxels that are otherwise memory-mapped.
    change = ornt_transform(io_orientation(geometry.affine_ras_zyx), axcodes2ornt(tuple(reversed(orientation))))
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return voxels, geometry
    # The geometry is not computed as a product of affines: rounding would move points halfway between two voxels.
    old_of_new = inv_ornt_aff(change, voxels.shape)
    turn = old_of_new[2::-1, 2::-1]  # a signed permutation of x, y, z
    turned = Geometry.from_header(
        np.abs(turn).T @ geometry.size,
        np.abs(turn).T @ geometry.spacing,
        geometry.index_to_world(old_of_new[:3, 3])[0],
        np.asarray(geometry.direction) @ turn,
        source="scan",
    )
    return np.ascontiguousarray(apply_orientation(voxels, change)), turned
