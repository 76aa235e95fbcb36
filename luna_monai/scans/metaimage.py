"""MetaImage files (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``), the format LUNA16 is published in.

ITK reads them too, but fills what a truncated or damaged file lacks with zeros, so that half a CT goes unnoticed. Here
the voxels are all there, or there is an error. Uncompressed voxels are mapped instead of read.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import FileHeader
from luna_monai.scans.sources import scan_name

DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
#: Fields that must have one of these values.
_ALLOWED = {
    "NDims": ("3",),
    "ElementNumberOfChannels": ("1",),
    "BinaryData": ("True", "true", "1"),
    "ElementType": tuple(DTYPES),
}
#: No header is longer; a file that goes on without ``ElementDataFile`` is something else.
MAX_HEADER_BYTES = 65536


def read_metaimage_header(path: str | Path) -> FileHeader:
    """Read the header of a MetaImage; the voxels need not be there.

    Args:
        path: ``.mhd`` or ``.mha`` file.

    Returns:
        The header.

    Raises:
        LunaError: when the file is no MetaImage header, or describes something else than a scan of one number per
            voxel.
    """
    path = Path(path)
    fields, end = _read_fields(path)

    def numbers(count: int, *names: str, default: str = "") -> list[float]:
        text = next((fields[name] for name in names if name in fields), default)
        try:
            values = [float(value) for value in text.split()]
        except ValueError:
            values = []
        if len(values) != count:
            raise LunaError(f"{path}: {names[0]} must be {count} numbers, found {text!r}")
        return values

    def whole(count: int, name: str, default: str = "") -> list[int]:
        values = numbers(count, name, default=default)
        if not all(value.is_integer() for value in values):
            raise LunaError(f"{path}: {name} must be whole numbers, found {fields[name]!r}")
        return [int(value) for value in values]

    def flag(*names: str) -> bool:
        return any(fields.get(name, "").lower() in ("true", "1") for name in names)

    for name, allowed in _ALLOWED.items():
        value = fields.get(name, "1" if name == "ElementNumberOfChannels" else "")
        if value not in allowed:
            raise LunaError(f"{path}: {name} must be {' or '.join(allowed)}, found {value!r}")
    axes = np.reshape(numbers(9, "TransformMatrix", "Rotation", "Orientation", default="1 0 0 0 1 0 0 0 1"), (3, 3))
    geometry = Geometry.from_header(
        whole(3, "DimSize"),
        numbers(3, "ElementSpacing"),
        numbers(3, "Offset", "Position", "Origin"),
        axes.T,  # each triple of the header is the direction of one axis, a column of the matrix
        source=path,
    )
    data_file = fields["ElementDataFile"]
    local = data_file.upper() == "LOCAL"
    voxel_file = path if local else path.parent / data_file
    if Path(data_file).is_absolute() or ".." in Path(data_file).parts:
        rule = "its voxels must be in the folder of the header"
        raise LunaError(f"{path}: {rule}, found ElementDataFile = {data_file}; copy them there")
    (compressed_bytes,), (offset,) = whole(1, "CompressedDataSize", "0"), whole(1, "HeaderSize", "0")
    big_endian = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return FileHeader(
        format="MetaImage",
        path=path,
        seriesuid=scan_name(path),
        geometry=geometry,
        dtype=np.dtype((">" if big_endian else "<") + DTYPES[fields["ElementType"]]),
        files=(path,) if local else (path, voxel_file),
        offset=end if local else offset,
        compressed=flag("CompressedData"),
        compressed_bytes=compressed_bytes or None,
        may_have_more=not local and offset < 0,
    )


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
    fields: dict[str, str] = {}
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        name, separator, value = (part.strip() for part in line.decode("utf-8", "replace").partition("="))
        if name and not separator:
            raise LunaError(f"{path}: not a MetaImage header, found {name[:60]!r} where 'Name = value' is expected")
        fields[name] = value
        if name == "ElementDataFile":
            return fields, end
    raise LunaError(f"{path}: the MetaImage header ends without 'ElementDataFile'; copy the scan from its source again")
