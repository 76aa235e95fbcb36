"""MetaImage files (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``), the format LUNA16 is published in.

ITK reads them too, but fills what a truncated or damaged file lacks with zeros, so that half a CT goes unnoticed. Here
the voxels are all there, or there is an error. Uncompressed voxels are mapped instead of read.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

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
#: Compressed bytes taken at a time, so that a worker's memory holds one scan and not its compressed file as well.
CHUNK_BYTES = 1 << 20
#: What zlib can make of one byte at most, of equal voxels: https://zlib.net/zlib_tech.html
MAX_COMPRESSION = 1032
#: zlib's ``wbits`` for streams with a zlib or a gzip header; MetaImage files have either.
ZLIB_OR_GZIP = 47


@dataclass(frozen=True)
class MetaImageHeader:
    """What the header of a MetaImage says.

    Args:
        path: the file with the header.
        geometry: size, place and orientation.
        dtype: type of the voxels in the file, with byte order.
        voxel_file: the file with the voxels; ``path`` itself for ``.mha``.
        offset: bytes before the voxels in ``voxel_file``; -1 when the voxels are its last bytes.
        compressed: whether the voxels are compressed.
        compressed_bytes: their compressed size, if the header gives it.
    """

    path: Path
    geometry: Geometry
    dtype: np.dtype
    voxel_file: Path
    offset: int
    compressed: bool
    compressed_bytes: int | None

    @property
    def voxel_bytes(self) -> int:
        """Bytes of all voxels, uncompressed."""
        x, y, z = self.geometry.size
        return x * y * z * self.dtype.itemsize


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
    if not flag("BinaryData") or data_file.upper().startswith("LIST") or "%" in data_file:
        raise LunaError(
            f"{path}: only binary voxels in one file are read, found BinaryData = {fields.get('BinaryData')}, "
            f"ElementDataFile = {data_file}; convert the scan to .mhd with one .raw"
        )
    local = data_file.upper() == "LOCAL"
    compressed_bytes = whole("CompressedDataSize", default="0")
    big_endian = flag("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    return MetaImageHeader(
        path=path,
        geometry=geometry,
        dtype=np.dtype((">" if big_endian else "<") + DTYPES[element_type]),
        voxel_file=path if local else path.parent / data_file,
        offset=end if local else whole("HeaderSize", default="0"),
        compressed=flag("CompressedData"),
        compressed_bytes=compressed_bytes or None,
    )


def check_voxel_file(header: MetaImageHeader) -> None:
    """Compare the size of the voxel file with what the header says, without reading it.

    Args:
        header: of the scan.

    Raises:
        LunaError: when the voxel file is missing, or shorter or longer than it must be.
    """
    if not header.voxel_file.is_file():
        raise LunaError(
            f"{header.voxel_file}: no such file, but {header.path.name} says that its voxels are there; "
            "copy it beside the header"
        )
    found = header.voxel_file.stat().st_size - max(header.offset, 0)
    size = " × ".join(map(str, header.geometry.size))
    if header.compressed and found * MAX_COMPRESSION < header.voxel_bytes:
        raise LunaError(
            f"{header.voxel_file}: {found} compressed bytes cannot hold the {header.voxel_bytes} bytes that "
            f"{header.path.name} says ({size} voxels of {header.dtype.name}); it is truncated or the header wrong"
        )
    expected = header.compressed_bytes if header.compressed else header.voxel_bytes
    if expected is not None and (found < expected or (found > expected and header.offset >= 0)):
        kind = "compressed bytes" if header.compressed else f"bytes ({size} voxels of {header.dtype.name})"
        advice = "it is truncated: copy it again" if found < expected else "header and voxels do not belong together"
        raise LunaError(
            f"{header.voxel_file}: found {found} bytes of voxels, but {header.path.name} says {expected} {kind}; "
            f"{advice}"
        )


def read_metaimage_voxels(header: MetaImageHeader) -> np.ndarray:
    """Map the voxels of an uncompressed MetaImage, or decompress those of a compressed one.

    Args:
        header: of the scan.

    Returns:
        Array (z, y, x) in the type of the file, in native byte order. A mapped array may be written to; nothing of
        that reaches the file.

    Raises:
        LunaError: when the voxel file is missing, damaged, or does not hold what the header says.
    """
    check_voxel_file(header)
    if header.compressed:
        flat = _decompress(header).view(header.dtype)
    else:
        offset = header.offset
        if offset < 0:
            offset = header.voxel_file.stat().st_size - header.voxel_bytes
        try:
            raw = np.memmap(header.voxel_file, dtype=np.uint8, mode="c", offset=offset, shape=(header.voxel_bytes,))
        except OSError as error:
            raise LunaError(f"{header.voxel_file}: cannot be read ({error.strerror})") from error
        # torch refuses voxels that do not start at a multiple of their size, as they may behind the header of a .mha.
        flat = (raw if offset % header.dtype.itemsize == 0 else raw.copy()).view(header.dtype)
    # Only foreign byte order is copied here.
    return flat.astype(header.dtype.newbyteorder("="), copy=False).reshape(header.geometry.shape)


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


def _decompress(header: MetaImageHeader) -> np.ndarray:
    voxels = np.empty(header.voxel_bytes, dtype=np.uint8)
    inflater = zlib.decompressobj(wbits=ZLIB_OR_GZIP)
    done = 0
    try:
        with header.voxel_file.open("rb") as stream:
            if header.offset >= 0:
                stream.seek(header.offset)
            elif header.compressed_bytes:
                stream.seek(-header.compressed_bytes, os.SEEK_END)
            while not inflater.eof:
                piece = inflater.unconsumed_tail or stream.read(CHUNK_BYTES)
                output = inflater.decompress(piece, 4 * CHUNK_BYTES)
                if not piece and not output:
                    break
                if done + len(output) > len(voxels):
                    done += len(output)
                    break
                voxels[done : done + len(output)] = np.frombuffer(output, dtype=np.uint8)
                done += len(output)
    except zlib.error as error:
        raise LunaError(f"{header.voxel_file}: damaged compressed data ({error}); copy it again") from error
    except OSError as error:
        raise LunaError(f"{header.voxel_file}: cannot be read ({error.strerror})") from error
    if done != len(voxels) or not inflater.eof:
        size = " × ".join(map(str, header.geometry.size))
        found = f"more than {len(voxels)}" if done > len(voxels) else done
        raise LunaError(
            f"{header.voxel_file}: holds {found} bytes of voxels when decompressed, but {header.path.name} says "
            f"{header.voxel_bytes} ({size} voxels of {header.dtype.name}); the file is truncated or the header wrong"
        )
    return voxels
