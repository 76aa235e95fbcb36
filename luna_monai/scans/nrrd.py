"""NRRD files (``.nrrd``) that hold their voxels themselves.

ITK reads the header. Raw and gzip voxels are read here, because ITK does not compare gzip's checksum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import SimpleITK as sitk

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.itk import itk_errors
from luna_monai.scans.sources import scan_name
from luna_monai.scans.voxels import MAX_COMPRESSION, inflate_voxels, map_voxels

#: No header is longer.
MAX_HEADER_BYTES = 65536
GZIP, RAW = ("gzip", "gz"), ("raw",)


@dataclass(frozen=True, kw_only=True)
class NrrdHeader(ScanHeader):
    """What the header of an NRRD file says.

    Attributes:
        offset: bytes before the voxels, compressed or not.
        encoding: of the voxels.
    """

    format: ClassVar[str] = "NRRD"
    offset: int
    encoding: str

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are uncompressed, in native byte order and at an even address."""
        return self.encoding in RAW and self.dtype.isnative and self.offset % self.dtype.itemsize == 0

    def read_voxels(self) -> np.ndarray:
        """Map or read the voxels, see :meth:`ScanHeader.read_voxels`."""
        if self.encoding in RAW:
            return map_voxels(self.path, self.offset, self.dtype, self.geometry.shape)
        if self.encoding in GZIP:
            return inflate_voxels(self.path, self.offset, 0, self.dtype, self.geometry.shape)
        with itk_errors(self.path):
            return sitk.GetArrayFromImage(sitk.ReadImage(str(self.path)))


def read_nrrd_header(path: Path) -> NrrdHeader:
    """Read the header of an NRRD file.

    Args:
        path: ``.nrrd`` file.

    Returns:
        The header.

    Raises:
        LunaError: when the header cannot be read, its voxels are in another file or truncated, or it is not a scan of
            one number per voxel.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error
    end = re.search(rb"\r?\n\r?\n", content)
    offset = end.end() if end else 0
    lines = [line.partition(":") for line in content[:offset].decode("latin-1").lower().splitlines()]
    fields = {name.strip(): value.strip() for name, _, value in lines}
    if "data file" in fields or "datafile" in fields:
        raise LunaError(f"{path}: its voxels are in another file; save the scan as one .nrrd")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO")
    with itk_errors(path):
        reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise LunaError(f"{path}: a scan has one number per voxel, found {reader.GetNumberOfComponents()}")
    if reader.GetDimension() != 3:
        size = " × ".join(map(str, reader.GetSize()))
        raise LunaError(f"{path}: a scan has 3 dimensions, found {reader.GetDimension()} ({size})")
    geometry = Geometry.from_header(
        reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), source=path
    )
    dtype = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
    header = NrrdHeader(
        path=path,
        seriesuid=scan_name(path),
        geometry=geometry,
        dtype=dtype.newbyteorder(">" if fields.get("endian") == "big" else "<"),
        files=(path,),
        offset=offset,
        # Other encodings, and what is skipped before the voxels, are left to ITK.
        encoding="other" if fields.keys() & {"byte skip", "line skip"} else fields.get("encoding", "other"),
    )
    found = path.stat().st_size - header.offset
    ratio = 1 if header.encoding in RAW else MAX_COMPRESSION
    if found * ratio < header.nbytes:
        raise LunaError(
            f"{path}: found {found} bytes of voxels, but its header says {header.nbytes} ({header.description}); "
            "it is truncated, copy it again"
        )
    return header
