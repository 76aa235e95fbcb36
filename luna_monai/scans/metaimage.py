"""MetaImage files (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``), the format LUNA16 is published in.

ITK reads them too, but fills what a truncated or damaged file lacks with zeros, so that half a CT goes unnoticed. Here
the voxels are all there, or there is an error. Uncompressed voxels are mapped instead of read.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.sources import scan_name
from luna_monai.scans.voxels import MAX_COMPRESSION, inflate_voxels, map_voxels

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
#: No header is longer; a file that goes on without ``ElementDataFile`` is something else.
MAX_HEADER_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class MetaImageHeader(ScanHeader):
    """What the header of a MetaImage says.

    Attributes:
        voxel_file: the file with the voxels; ``path`` itself for ``.mha``.
        offset: bytes before the voxels in ``voxel_file``; -1 when the voxels are its last bytes.
        compressed: whether the voxels are compressed.
        compressed_bytes: their compressed size, if the header gives it.
    """

    format: ClassVar[str] = "MetaImage"
    voxel_file: Path
    offset: int
    compressed: bool
    compressed_bytes: int | None

    @property
    def is_mapped(self) -> bool:
        """Whether the voxels are uncompressed, in native byte order and at an even address."""
        offset = max(self.offset, 0)
        return not self.compressed and self.dtype.isnative and offset % self.dtype.itemsize == 0

    def check_voxel_file(self) -> None:
        """Compare the size of the voxel file with what the header says, without reading it.

        Raises:
            LunaError: when the voxel file is missing, or shorter or longer than it must be.
        """
        if not self.voxel_file.is_file():
            raise LunaError(
                f"{self.voxel_file}: no such file, but {self.path.name} says that its voxels are there; "
                "copy it beside the header"
            )
        found = self.voxel_file.stat().st_size - max(self.offset, 0)
        if self.compressed and found * MAX_COMPRESSION < self.nbytes:
            raise LunaError(
                f"{self.voxel_file}: {found} compressed bytes cannot hold the {self.nbytes} bytes that "
                f"{self.path.name} says ({self.description}); it is truncated or the header is wrong"
            )
        expected = self.compressed_bytes if self.compressed else self.nbytes
        if expected is not None and (found < expected or (found > expected and self.offset >= 0)):
            kind = "compressed bytes" if self.compressed else f"bytes ({self.description})"
            advice = "it is truncated: copy it again" if found < expected else "they do not belong together"
            raise LunaError(
                f"{self.voxel_file}: found {found} bytes of voxels, but {self.path.name} says {expected} {kind}; "
                f"{advice}"
            )

    def read_voxels(self) -> np.ndarray:
        """Map or decompress the voxels, see :meth:`ScanHeader.read_voxels`."""
        self.check_voxel_file()
        offset = self.offset
        if offset < 0:
            length = (self.compressed_bytes or self.voxel_file.stat().st_size) if self.compressed else self.nbytes
            offset = self.voxel_file.stat().st_size - length
        if self.compressed:
            return inflate_voxels(self.voxel_file, offset, 0, self.dtype, self.geometry.shape)
        return map_voxels(self.voxel_file, offset, self.dtype, self.geometry.shape)


def read_metaimage_header(path: str | Path) -> MetaImageHeader:
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

    def field(*names: str, default: str | None = None) -> str:
        for name in names:
            if name in fields:
                return fields[name]
        if default is None:
            raise LunaError(f"{path}: no {names[0]!r} in the MetaImage header; copy the scan from its source again")
        return default

    def numbers(count: int, *names: str, default: str | None = None) -> list[float]:
        text = field(*names, default=default)
        try:
            values = [float(value) for value in text.split()]
        except ValueError:
            values = []
        if len(values) != count:
            raise LunaError(f"{path}: {names[0]} must be {count} numbers, found {text!r}")
        return values

    def whole(*names: str, default: str | None = None) -> int:
        (value,) = numbers(1, *names, default=default)
        if not value.is_integer():
            raise LunaError(f"{path}: {names[0]} must be a whole number, found {value:g}")
        return int(value)

    def flag(*names: str) -> bool:
        return field(*names, default="False").lower() in ("true", "1")

    dimensions = whole("NDims")
    if dimensions != 3:
        raise LunaError(f"{path}: a scan has 3 dimensions, found NDims = {dimensions}")
    channels = whole("ElementNumberOfChannels", default="1")
    if channels != 1:
        raise LunaError(f"{path}: a scan has one number per voxel, found ElementNumberOfChannels = {channels}")
    element_type = field("ElementType")
    if element_type not in DTYPES:
        raise LunaError(f"{path}: ElementType must be one of {', '.join(DTYPES)}, found {element_type!r}")
    size = numbers(3, "DimSize")
    if not all(value.is_integer() for value in size):
        raise LunaError(f"{path}: DimSize must be whole numbers, found {fields['DimSize']!r}")
    axes = np.reshape(numbers(9, "TransformMatrix", "Rotation", "Orientation", default="1 0 0 0 1 0 0 0 1"), (3, 3))
    geometry = Geometry.from_header(
        [int(value) for value in size],
        numbers(3, "ElementSpacing"),
        numbers(3, "Offset", "Position", "Origin"),
        axes.T,  # each triple of the header is the direction of one axis, a column of the matrix
        source=path,
    )
    data_file = field("ElementDataFile")
    local = data_file.upper() == "LOCAL"
    voxel_file = path if local else path.parent / data_file
    # A name with a '%' is a pattern only where the numbers of its first and last file follow.
    is_pattern = "%" in data_file and len(data_file.split()) > 1 and not voxel_file.is_file()
    if not flag("BinaryData") or data_file.upper().startswith("LIST") or is_pattern:
        raise LunaError(
            f"{path}: only binary voxels in one file are read, found BinaryData = {fields.get('BinaryData')}, "
            f"ElementDataFile = {data_file}; convert the scan to .mhd with one .raw"
        )
    if Path(data_file).is_absolute() or ".." in Path(data_file).parts:
        raise LunaError(
            f"{path}: its voxels must be in the folder of the header, found ElementDataFile = {data_file}; "
            "copy them beside the header and correct the name"
        )
    compressed_bytes = whole("CompressedDataSize", default="0")
    big_endian = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return MetaImageHeader(
        path=path,
        seriesuid=scan_name(path),
        geometry=geometry,
        dtype=np.dtype((">" if big_endian else "<") + DTYPES[element_type]),
        files=(path,) if local else (path, voxel_file),
        voxel_file=voxel_file,
        offset=end if local else whole("HeaderSize", default="0"),
        compressed=flag("CompressedData"),
        compressed_bytes=compressed_bytes or None,
    )


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
    fields: dict[str, str] = {}
    position = 0
    while position < len(content):
        end = content.find(b"\n", position)
        end = len(content) if end < 0 else end
        line = content[position:end].decode("utf-8", "replace").strip()
        position = end + 1
        name, separator, value = line.partition("=")
        if separator:
            fields[name.strip()] = value.strip()
        elif line:
            raise LunaError(f"{path}: not a MetaImage header, found {line[:60]!r} where 'Name = value' is expected")
        if name.strip() == "ElementDataFile":
            return fields, position
    raise LunaError(f"{path}: the MetaImage header ends without 'ElementDataFile'; copy the scan from its source again")
