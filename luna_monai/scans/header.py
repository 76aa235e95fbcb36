"""Headers of scans, the same for all formats."""

from __future__ import annotations

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
        seriesuid: Series Instance UID of a DICOM series; else the name of the file without its ending.
        geometry: size, position and orientation of the voxels in the file.
        dtype: of the voxels in the file.
        files: all files of the scan: the header first, or the DICOM slices in the order of the volume.
        warnings: what is unusual about the scan.
        slope: factor from the voxels that :meth:`read_voxels` gives to HU.
        intercept: HU of such a voxel of value 0.
    """

    path: Path
    seriesuid: str
    geometry: Geometry
    dtype: np.dtype
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are HU that are mapped in the file and take no memory."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.geometry.size) * self.dtype.itemsize

    def read_voxels(self) -> np.ndarray:
        """Read or map the voxels.

        Returns:
            Array (z, y, x) in native byte order. Writing to it never changes the file.

        Raises:
            LunaError: when the voxels are missing, damaged or truncated.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FileHeader(ScanHeader):
    """The header of a scan whose voxels are in one file, the last of ``files``.

    Attributes:
        offset: bytes before the voxels, compressed or not.
        compressed: whether the voxels are compressed.
        compressed_bytes: their compressed size, if the header gives it.
        skip: bytes before the first voxel, when decompressed.
        exact: whether nothing may follow the voxels in the file.
    """

    offset: int
    compressed: bool
    compressed_bytes: int | None = None
    skip: int = 0
    exact: bool = False

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are uncompressed HU, aligned, in native byte order and of a type that needs no change."""
        is_hounsfield = (self.slope, self.intercept) == (1.0, 0.0) and self.dtype in (np.int16, np.float32)
        return is_hounsfield and not self.compressed and self.dtype.isnative and self.offset % self.dtype.itemsize == 0

    def check(self) -> None:
        """Compare the size of the file with what the header says, without reading it.

        Raises:
            LunaError: when the file with the voxels is missing, or shorter or longer than it must be.
        """
        file = self.files[-1]
        if not file.is_file():
            raise LunaError(f"{file}: no such file, but {self.path.name} says that its voxels are there; copy it here")
        if max(abs(self.slope), abs(self.intercept)) > LARGEST:
            raise LunaError(f"{file}: no CT is rescaled by slope {self.slope:g} and intercept {self.intercept:g}")
        found = file.stat().st_size - self.offset
        expected = self.compressed_bytes if self.compressed else self.nbytes
        least = expected or self.nbytes // MAX_COMPRESSION
        if found < least or (self.exact and expected and found > expected):
            reason = "truncated, or the header is that of another scan; copy the scan again"
            raise LunaError(f"{file}: found {found} bytes of voxels, but its header says {least}: {reason}")

    def read_voxels(self) -> np.ndarray:
        """Map or decompress the voxels, see :meth:`ScanHeader.read_voxels`."""
        self.check()
        file, shape = self.files[-1], self.geometry.shape
        if self.compressed:
            voxels = inflate_voxels(file, self.offset, self.skip, self.dtype, shape, exact=self.exact)
        else:
            voxels = np.memmap(file, self.dtype, mode="c", offset=self.offset, shape=shape)
        # torch refuses voxels that do not start at a multiple of their size.
        return np.require(voxels, self.dtype.newbyteorder("="), "A")
