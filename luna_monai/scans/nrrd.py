"""Reading of NRRD files (``.nrrd``) that contain their voxels.

ITK reads the header. This package reads the voxels, because ITK does not verify gzip's checksum and cannot map a file.
"""

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
        The fields of a :class:`~luna_monai.scans.header.FileHeader`, without ``path`` and ``seriesuid``.

    Raises:
        LunaError: when the header cannot be read, the voxels are in another file or not encoded as raw or gzip, or the
            scan does not have one number per voxel.
    """
    with itk_reader(path, "NrrdImageIO", "it is damaged, or not an NRRD file") as reader:
        reader.ReadImageInformation()
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        while line := stream.readline().decode("latin-1").strip().lower():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
        offset = stream.tell()
    if not fields.keys() & {"spacings", "space directions"}:
        raise LunaError(f"{path}: the header contains no voxel spacing; save the scan with its spacing")
    encoding = fields.get("encoding", "")
    if encoding not in ENCODINGS or fields.keys() & {"data file", "datafile", "byte skip", "line skip"}:
        raise LunaError(f"{path}: voxels must be in the file itself, as raw or gzip; save the scan as one .nrrd file")
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
