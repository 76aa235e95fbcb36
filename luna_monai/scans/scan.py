"""One scan and the one way to load it, for training, prediction and every check."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from luna_monai.errors import LunaError
from luna_monai.files import readable_size
from luna_monai.scans.geometry import Geometry, orient
from luna_monai.scans.header import FileHeader, ScanHeader
from luna_monai.scans.sources import READERS, ScanSource, scan_name, suffix_of
from luna_monai.scans.voxels import as_hounsfield


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT in Hounsfield units.

    Attributes:
        header: of the file: format, path, files, geometry and type of the voxels as they are stored.
        voxels: array (z, y, x) in HU: int16 or float32, every value finite. Uncompressed voxels that need no change are
            mapped and take no memory.
        geometry: of ``voxels``; differs from ``header.geometry`` where the axes were turned.
        warnings: what is unusual about the scan.
    """

    header: ScanHeader
    voxels: np.ndarray
    geometry: Geometry
    warnings: tuple[str, ...]

    @property
    def seriesuid(self) -> str:
        """Series Instance UID, or the name of the file where it has none."""
        return self.header.seriesuid


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file that cannot be read into one line."""
    try:
        yield
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_header(source: str | Path | ScanSource) -> ScanHeader:
    """Read the header of a scan and check everything that can be checked without reading voxels.

    Args:
        source: a file with one of ``SUFFIXES``, a folder of DICOM slices, or where a scan is.

    Returns:
        The header; :func:`read_scan` takes it too, and does not read it again.

    Raises:
        LunaError: when the scan is missing, its header is damaged or impossible, or the voxels are missing or
            truncated.
    """
    source = source if isinstance(source, ScanSource) else ScanSource(Path(source))
    path, suffix = source.path, suffix_of(source.path)
    # Each reader is imported when it is needed: SimpleITK, nibabel and pydicom take half a second each.
    if path.is_dir():
        from luna_monai.scans.dicom import read_dicom_header

        return read_dicom_header(path, source.seriesuid)
    if not path.is_file():
        raise LunaError(f"{path}: no such file or folder")
    if suffix is None:
        raise LunaError(f"{path}: unknown kind of file; known are {', '.join(READERS)} and folders of DICOM slices")
    with _one_line(path):
        fields = importlib.import_module(f"luna_monai.scans.{READERS[suffix]}").read_fields(path)
        header = FileHeader(path=path, seriesuid=source.seriesuid or scan_name(path), **fields)
        header.check()
    return header


def read_scan(source: str | Path | ScanSource | ScanHeader, orientation: str | None = "LPS") -> Scan:
    """Read a scan: mapped when it is uncompressed and nothing has to change, into memory otherwise.

    Args:
        source: a file with one of ``SUFFIXES``, a folder of DICOM slices, where a scan is, or its header.
        orientation: where the axes of the voxels are to lead, see :func:`~luna_monai.scans.orient`; None leaves them
            as they are in the file.

    Returns:
        The scan.

    Raises:
        LunaError: as :func:`read_header`; and when the voxels are damaged, or do not fit into memory.
    """
    header = source if isinstance(source, ScanHeader) else read_header(source)
    available = psutil.virtual_memory().available
    if not header.is_mapped and header.nbytes > available:
        found = f"{' × '.join(map(str, header.geometry.size))} voxels of {header.dtype.name}"
        needed = f"{readable_size(header.nbytes)} of memory, {readable_size(available)} are available"
        raise LunaError(f"{header.path}: {found} need {needed}; check the header")
    with _one_line(header.path):
        voxels, not_finite = as_hounsfield(header.read_voxels(), header.slope, header.intercept)
    geometry, warnings = header.geometry, header.warnings
    if not_finite:
        warnings = (*warnings, f"{not_finite} voxels are not finite numbers; they count as air")
    if orientation is not None:
        voxels, geometry = orient(voxels, geometry, orientation)
    return Scan(header, voxels, geometry, warnings)
