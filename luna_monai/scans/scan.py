"""One scan and the one way to load it, for training, prediction and every check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from luna_monai.errors import LunaError
from luna_monai.files import readable_size
from luna_monai.scans.geometry import Geometry, orient
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.sources import SUFFIXES, ScanSource, suffix_of
from luna_monai.scans.voxels import as_hounsfield


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT in Hounsfield units.

    Attributes:
        header: of the file: format, files, geometry and type of the voxels as they are stored.
        voxels: array (z, y, x) in HU: int16, int32 or float32, every value finite. Uncompressed voxels that need no
            change are mapped and take no memory.
        geometry: of ``voxels``; differs from ``header.geometry`` where the axes were turned.
        warnings: what is unusual about the scan.
        is_mapped: whether the voxels lie in the file and take no memory.
    """

    header: ScanHeader
    voxels: np.ndarray
    geometry: Geometry
    warnings: tuple[str, ...]
    is_mapped: bool

    @property
    def seriesuid(self) -> str:
        """Series Instance UID, or the name of the file where it has none."""
        return self.header.seriesuid

    @property
    def path(self) -> Path:
        """The file, or the folder of a DICOM series."""
        return self.header.path

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan."""
        return self.header.files


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
    path = source.path
    # Each reader is imported when it is needed: SimpleITK, nibabel and pydicom take half a second each.
    if path.is_dir():
        from luna_monai.scans.dicom import read_dicom_header

        return read_dicom_header(path, source.seriesuid)
    if not path.is_file():
        raise LunaError(f"{path}: no such file or folder")
    suffix = suffix_of(path)
    if suffix in (".mhd", ".mha"):
        from luna_monai.scans.metaimage import read_metaimage_header

        header = read_metaimage_header(path)
    elif suffix in (".nii", ".nii.gz"):
        from luna_monai.scans.nifti import read_nifti_header

        header = read_nifti_header(path)
    elif suffix == ".nrrd":
        from luna_monai.scans.nrrd import read_nrrd_header

        header = read_nrrd_header(path)
    else:
        raise LunaError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)} and folders of DICOM slices")
    header.check()
    return header if source.seriesuid is None else replace(header, seriesuid=source.seriesuid)


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
        needed = f"{header.description} need {readable_size(header.nbytes)} of memory"
        raise LunaError(f"{header.path}: {needed}, {readable_size(available)} are available; check the header")
    stored = header.read_voxels()
    voxels, not_finite = as_hounsfield(stored)
    geometry, warnings = header.geometry, header.warnings
    if not_finite:
        warnings = (*warnings, f"{not_finite} voxels are not finite numbers; they count as air")
    if orientation is not None:
        voxels, geometry = orient(voxels, geometry, orientation)
    return Scan(header, voxels, geometry, warnings, header.is_mapped and voxels is stored)
