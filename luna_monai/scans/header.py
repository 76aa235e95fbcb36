"""What the header of a scan says, whatever its format."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from luna_monai.scans.geometry import Geometry


@dataclass(frozen=True, kw_only=True)
class ScanHeader(ABC):
    """A scan whose header has been read and checked, and whose voxels have not been read.

    Each format has a subclass.

    Attributes:
        format: name of the format.
        path: the file, or the folder of a DICOM series.
        seriesuid: Series Instance UID of a DICOM series; else the name of the file without its ending.
        geometry: size, position and orientation of the voxels in the file.
        dtype: of the voxels in the file.
        files: all files of the scan: the header first, or the DICOM slices in the order of the volume.
        warnings: what is unusual about the scan.
    """

    format: ClassVar[str]
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
