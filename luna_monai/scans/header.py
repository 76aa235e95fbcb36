"""Headers of scans, common to all formats."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.voxels import LARGEST, MAX_COMPRESSION, inflate_voxels


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """A scan whose header has been read and checked, and whose voxels have not been read.

    Attributes:
        path: the file, or the folder of a DICOM series.
        seriesuid: Series Instance UID of a DICOM series; for other formats, the file name without its suffix.
        geometry: size, position and orientation of the voxels in the file.
        dtype: type of the voxels in the file.
        files: all files of the scan: the header and then the voxels, or the DICOM slices in the order of the volume.
        instances: Instance Number and SOP Instance UID of each DICOM slice; empty for other formats.
        warnings: unusual properties of the scan.
        slope: factor from the values of :meth:`read_voxels` to HU.
        intercept: HU of the value 0.
    """

    path: Path
    seriesuid: str
    geometry: Geometry
    dtype: np.dtype
    files: tuple[Path, ...]
    instances: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_mapped(self) -> bool:
        """Whether :meth:`read_voxels` maps HU from the file, which takes no memory."""
        return False

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes, uncompressed."""
        return math.prod(self.geometry.size) * self.dtype.itemsize

    def read_voxels(self) -> np.ndarray:
        """Read or map the voxels.

        Returns:
            Array (z, y, x) in native byte order. Changes of the array do not change the file.

        Raises:
            LunaError: when the voxels are missing, damaged or truncated.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FileHeader(ScanHeader):
    """The header of a scan whose voxels are in one file, the last of ``files``.

    Attributes:
        offset: number of bytes before the voxels or, if they are compressed, before the compressed data.
        compressed: whether the voxels are compressed.
        compressed_bytes: size of the compressed data, if the header gives it.
        skip: number of decompressed bytes before the first voxel.
        exact: whether the file must end after the voxels.
    """

    offset: int
    compressed: bool
    compressed_bytes: int | None = None
    skip: int = 0
    exact: bool = False

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are uncompressed, aligned HU in native byte order, of a type that needs no conversion."""
        is_hounsfield = (self.slope, self.intercept) == (1.0, 0.0) and self.dtype in (np.int16, np.float32)
        return is_hounsfield and not self.compressed and self.dtype.isnative and self.offset % self.dtype.itemsize == 0

    def check(self) -> None:
        """Check the size of the voxel file and the rescaling, without reading voxels.

        Raises:
            LunaError: when the voxel file is missing or does not have the size that the header requires, or when slope
                or intercept are not those of a CT.
        """
        file = self.files[-1]
        if not file.is_file():
            raise LunaError(f"{file}: no such file, but {self.path.name} refers to it; copy the scan again")
        if max(abs(self.slope), abs(self.intercept)) > LARGEST:
            raise LunaError(f"{file}: no CT has slope {self.slope:g}, intercept {self.intercept:g}; check the header")
        found = file.stat().st_size - self.offset
        expected = self.compressed_bytes if self.compressed else self.nbytes
        least = expected or self.nbytes // MAX_COMPRESSION
        if found < least or (self.exact and expected and found > expected):
            reason = "the file is truncated, or the header belongs to another scan; copy the scan again"
            raise LunaError(f"{file}: found {found} bytes of voxels, expected {least}: {reason}")

    def read_voxels(self) -> np.ndarray:
        """Map or decompress the voxels, see :meth:`ScanHeader.read_voxels`."""
        self.check()
        file, shape = self.files[-1], self.geometry.shape
        if self.compressed:
            voxels = inflate_voxels(file, self.offset, self.skip, self.dtype, shape, exact=self.exact)
        else:
            voxels = np.memmap(file, self.dtype, mode="c", offset=self.offset, shape=shape)
        # torch requires that voxels start at a multiple of their size.
        return np.require(voxels, self.dtype.newbyteorder("="), "A")
