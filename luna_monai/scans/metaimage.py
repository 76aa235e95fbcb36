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
#: Fields that must have one of these values.
_ALLOWED = {
    "NDims": ("3",),
    "ElementNumberOfChannels": ("1",),
    "BinaryData": ("True", "true", "1"),
    "ElementType": tuple(DTYPES),
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
        expected = self.compressed_bytes if self.compressed else self.nbytes
        least = self.nbytes // MAX_COMPRESSION if expected is None else expected
        if found < least or (expected is not None and self.offset >= 0 and found > expected):
            raise LunaError(
                f"{self.voxel_file}: found {found} bytes of voxels, but {self.path.name} says {least} "
                f"({self.description}); one of the two is truncated or of another scan: copy both again"
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
        raise LunaError(
            f"{path}: its voxels must be in the folder of the header, found ElementDataFile = {data_file}; "
            "copy them beside the header and correct the name"
        )
    (compressed_bytes,), (offset,) = whole(1, "CompressedDataSize", "0"), whole(1, "HeaderSize", "0")
    big_endian = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return MetaImageHeader(
        path=path,
        seriesuid=scan_name(path),
        geometry=geometry,
        dtype=np.dtype((">" if big_endian else "<") + DTYPES[fields["ElementType"]]),
        files=(path,) if local else (path, voxel_file),
        voxel_file=voxel_file,
        offset=end if local else offset,
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
