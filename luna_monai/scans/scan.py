"""A scan, and the function that reads it for training, prediction and checks."""

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
from luna_monai.scans.voxels import AIR, as_hounsfield


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT in Hounsfield units.

    Attributes:
        header: header of the file: path, files, and geometry and type of the stored voxels.
        voxels: array (z, y, x) in HU, int16 or float32, all values finite. Uncompressed voxels that need no change are
            memory-mapped.
        geometry: geometry of ``voxels``; differs from ``header.geometry`` if axes were flipped or permuted.
        warnings: unusual properties of the scan.
    """

    header: ScanHeader
    voxels: np.ndarray
    geometry: Geometry
    warnings: tuple[str, ...]

    @property
    def seriesuid(self) -> str:
        """Series Instance UID of a DICOM series; for other formats, the file name without its suffix."""
        return self.header.seriesuid


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn an error of the operating system while a file is read into one line."""
    try:
        yield
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_header(source: str | Path | ScanSource) -> ScanHeader:
    """Read the header of a scan and check everything that can be checked without reading voxels.

    Args:
        source: a file with one of ``SUFFIXES``, a folder of DICOM slices, or a :class:`ScanSource`.

    Returns:
        The header. :func:`read_scan` accepts it, and does not read it again.

    Raises:
        LunaError: when the scan is missing, its header is damaged or not that of a CT, or voxels are missing.
    """
    source = source if isinstance(source, ScanSource) else ScanSource(Path(source))
    path, suffix = source.path, suffix_of(source.path)
    # Readers are imported when they are needed: SimpleITK, nibabel and pydicom take half a second each.
    if path.is_dir():
        from luna_monai.scans.dicom import read_dicom_header

        return read_dicom_header(source)
    if not path.is_file():
        raise LunaError(f"{path}: no such file or folder")
    if suffix is None:
        raise LunaError(f"{path}: unknown file type; supported: {', '.join(READERS)}, and folders of DICOM slices")
    with _one_line(path):
        fields = importlib.import_module(f"luna_monai.scans.{READERS[suffix]}").read_fields(path)
        header = FileHeader(path=path, seriesuid=source.seriesuid or scan_name(path), **fields)
        header.check()
    return header


def read_scan(source: str | Path | ScanSource | ScanHeader, orientation: str | None = "LPS") -> Scan:
    """Read a scan. Uncompressed voxels that need no change are memory-mapped; other voxels are read into memory.

    Args:
        source: a file with one of ``SUFFIXES``, a folder of DICOM slices, a :class:`ScanSource`, or a header.
        orientation: directions of the axes of the voxels, see :func:`~luna_monai.scans.orient`; None keeps the axes of
            the file.

    Returns:
        The scan.

    Raises:
        LunaError: as in :func:`read_header`; and when the voxels are damaged, or do not fit into memory.
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
        warnings = (*warnings, f"{not_finite} voxels are not finite; they are set to air ({AIR} HU)")
    if orientation is not None:
        voxels, geometry = orient(voxels, geometry, orientation)
    return Scan(header, voxels, geometry, warnings)
