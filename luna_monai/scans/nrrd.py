"""NRRD files (``.nrrd``) that hold their voxels themselves.

ITK reads the header. Voxels are read here, because ITK does not compare gzip's checksum and cannot map a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.itk import itk_reader

ENCODINGS = {"raw": False, "gzip": True, "gz": True}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the header of an NRRD file.

    Args:
        path: ``.nrrd`` file.

    Returns:
        The fields of a :class:`~luna_monai.scans.header.FileHeader` but for its path and name.

    Raises:
        LunaError: when the header cannot be read, its voxels are in another file, encoded otherwise than raw or gzip,
            or it is not a scan of one number per voxel.
    """
    with itk_reader(path, "NrrdImageIO", "it is damaged, or not an NRRD file") as reader:
        reader.ReadImageInformation()
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while line := stream.readline().decode("latin-1").strip().lower():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        offset = stream.tell()
    encoding = fields.get("encoding", "")
    if encoding not in ENCODINGS or fields.keys() & {"data file", "datafile", "byte skip", "line skip"}:
        raise LunaError(f"{path}: only raw or gzip voxels in the file itself are read; save the scan as one .nrrd")
    if reader.GetNumberOfComponents() != 1:
        raise LunaError(f"{path}: a scan has one number per voxel, found {reader.GetNumberOfComponents()}")
    dtype = sitk.GetArrayFromImage(sitk.Image([1] * 3, reader.GetPixelID())).dtype
    return {
        "geometry": Geometry.from_header(
            reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), source=path
        ),
        "dtype": dtype.newbyteorder(">" if fields.get("endian") == "big" else "<"),
        "files": (path,),
        "offset": offset,
        "compressed": ENCODINGS[encoding],
    }
