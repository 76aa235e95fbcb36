"""Headers of scans, the same for all formats."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.voxels import CHUNK_BYTES, MAX_COMPRESSION, inflate_voxels, map_voxels


@dataclass(frozen=True, kw_only=True)
class ScanHeader(ABC):
    """A scan whose header has been read and checked, and whose voxels have not been read.

    Attributes:
        format: name of the format.
        path: the file, or the folder of a DICOM series.
        seriesuid: Series Instance UID of a DICOM series; else the name of the file without its ending.
        geometry: size, position and orientation of the voxels in the file.
        dtype: of the voxels in the file.
        files: all files of the scan: the header first, or the DICOM slices in the order of the volume.
        warnings: what is unusual about the scan.
    """

    format: str
    path: Path
    seriesuid: str
    geometry: Geometry
    dtype: np.dtype
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()

    @property
    def is_mapped(self) -> bool:
        """Whether :meth:`read_voxels` maps the voxels in the file and takes no memory for them."""
        return False

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        return math.prod(self.geometry.size) * self.dtype.itemsize

    @property
    def description(self) -> str:
        """Size and type for messages, such as ``512 × 512 × 133 voxels of int16``."""
        return f"{' × '.join(map(str, self.geometry.size))} voxels of {self.dtype.name}"

    @abstractmethod
    def read_voxels(self) -> np.ndarray:
        """Read or map the voxels.

        Returns:
            Array (z, y, x) in native byte order. Writing to it never changes the file.

        Raises:
            LunaError: when the voxels are missing, damaged or truncated.
        """


@dataclass(frozen=True, kw_only=True)
class FileHeader(ScanHeader):
    """The header of a scan whose voxels are in one file, the last of ``files``.

    Attributes:
        offset: bytes before the voxels, compressed or not; -1 when the voxels are the last bytes of the file.
        compressed: whether the voxels are compressed.
        compressed_bytes: their compressed size, if the header gives it.
        skip: bytes before the first voxel, when decompressed.
        may_have_more: whether the file may go on after the voxels.
        slope: factor from stored values to HU.
        intercept: HU of the stored value 0.
    """

    offset: int
    compressed: bool
    compressed_bytes: int | None = None
    skip: int = 0
    may_have_more: bool = True
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def _is_hounsfield(self) -> bool:
        return (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are uncompressed HU in native byte order and aligned."""
        is_aligned = max(self.offset, 0) % self.dtype.itemsize == 0
        return not self.compressed and self._is_hounsfield and self.dtype.isnative and is_aligned

    def check(self) -> None:
        """Compare the size of the file with what the header says, without reading it.

        Raises:
            LunaError: when the file with the voxels is missing, or shorter or longer than it must be.
        """
        file, header = self.files[-1], self.path.name if len(self.files) > 1 else "its header"
        if not file.is_file():
            raise LunaError(f"{file}: no such file, but {header} says that its voxels are there; copy it beside it")
        found = file.stat().st_size - max(self.offset, 0)
        expected = self.compressed_bytes if self.compressed else self.nbytes
        least = self.nbytes // MAX_COMPRESSION if expected is None else expected
        if found < least or (expected is not None and found > expected and not self.may_have_more):
            reason = "truncated, or the header is that of another scan; copy the scan again"
            raise LunaError(f"{file}: found {found} bytes of voxels, but {header} says {least}: {reason}")

    def read_voxels(self) -> np.ndarray:
        """Map or decompress the voxels and rescale them, see :meth:`ScanHeader.read_voxels`."""
        self.check()
        file, offset, shape = self.files[-1], self.offset, self.geometry.shape
        if offset < 0:
            size = file.stat().st_size
            offset = size - ((self.compressed_bytes or size) if self.compressed else self.nbytes)
        if self.compressed:
            slack = CHUNK_BYTES if self.may_have_more else 0
            voxels = inflate_voxels(file, offset, self.skip, self.dtype, shape, slack=slack)
        else:
            voxels = map_voxels(file, offset, self.dtype, shape)
        if self._is_hounsfield:
            return voxels
        # Integers stay integers where the rescaling keeps them so, and take half of the memory.
        whole = self.slope.is_integer() and self.intercept.is_integer() and voxels.dtype.kind != "f"
        fits = voxels.dtype.itemsize <= 2 and abs(self.slope) * 2**16 + abs(self.intercept) < 2**31
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is counted and becomes air
            rescaled = voxels.astype(np.int32 if whole and fits else np.float32)
            np.multiply(rescaled, self.slope, out=rescaled, casting="unsafe")
            np.add(rescaled, self.intercept, out=rescaled, casting="unsafe")
        return rescaled
