"""Headers and scans, until the scans package has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_monai.scans.metaimage import read_metaimage_header
from luna_monai.scans.readers import Geometry, check_scan, files_of_scan, map_or_read


@dataclass(frozen=True)
class ScanHeader:
    """What the header of a scan says."""

    path: Path
    geometry: Geometry
    dtype: np.dtype
    files: tuple[Path, ...]
    is_mapped: bool
    nbytes: int


@dataclass(frozen=True)
class Scan:
    """A scan with its voxels."""

    header: ScanHeader
    voxels: np.ndarray
    warnings: tuple[str, ...] = ()


def read_header(path: Path) -> ScanHeader:
    """Read the header of a scan."""
    geometry = check_scan(path)
    header = read_metaimage_header(path)
    mapped = not header.compressed and header.dtype.isnative and header.offset % header.dtype.itemsize == 0
    return ScanHeader(path, geometry, header.dtype, tuple(files_of_scan(path)), mapped, header.voxel_bytes)


def read_scan(header: ScanHeader) -> Scan:
    """Read a scan."""
    return Scan(header, map_or_read(header.path)[0])
