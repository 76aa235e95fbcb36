"""Voxels: mapped where they are uncompressed, decompressed once where they are not, and as Hounsfield units."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError

#: In HU: what lies outside of a scan, and what a voxel without a value counts as.
AIR = -1000
#: No number in the header of a CT is larger; products of two fit into int64.
LARGEST = 1e9
#: Bytes that are read or decompressed at a time, so that memory holds one scan and nothing else.
CHUNK_BYTES = 1 << 20
#: The largest ratio that zlib can reach: https://zlib.net/zlib_tech.html
MAX_COMPRESSION = 1032
#: zlib's ``wbits`` that accepts both a zlib and a gzip header.
ZLIB_OR_GZIP = 47
GZIP_MAGIC = b"\x1f\x8b"


def map_voxels(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Map uncompressed voxels; those in foreign byte order or at an odd address are copied.

    Args:
        path: the file, which must be long enough.
        offset: bytes before the first voxel.
        dtype: of the voxels in the file.
        shape: of the array.

    Returns:
        Array in native byte order. Writing to it never changes the file.

    Raises:
        LunaError: when the file cannot be read.
    """
    try:
        voxels = np.memmap(path, dtype, mode="c", offset=offset, shape=shape)
    except (OSError, ValueError) as error:  # which is raised where the file is too short
        raise LunaError(f"{path}: cannot be read ({error})") from error
    return np.require(voxels, dtype.newbyteorder("="), "A")


def inflate_voxels(
    path: Path, offset: int, skip: int, dtype: np.dtype, shape: tuple[int, ...], *, slack: int = 0
) -> np.ndarray:
    """Decompress voxels, and compare them with their checksum.

    Args:
        path: the file.
        offset: bytes before the compressed data, a zlib stream or one or several gzip streams.
        skip: decompressed bytes before the first voxel.
        dtype: of the voxels in the file.
        shape: of the array.
        slack: decompressed bytes that may follow the last voxel.

    Returns:
        Array in native byte order.

    Raises:
        LunaError: when the file cannot be read, is damaged, or does not hold what the header says.
    """
    target = np.empty(skip + int(np.prod(shape)) * dtype.itemsize, dtype=np.uint8)
    inflater = zlib.decompressobj(wbits=ZLIB_OR_GZIP)
    pending, done = b"", 0
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while done <= len(target) + slack:
                piece = pending or stream.read(CHUNK_BYTES)
                if inflater.eof:
                    if not piece.startswith(GZIP_MAGIC):
                        break
                    inflater = zlib.decompressobj(wbits=ZLIB_OR_GZIP)
                output = inflater.decompress(piece, 4 * CHUNK_BYTES)
                if not piece and not output:
                    break
                pending = inflater.unconsumed_tail or inflater.unused_data
                part = target[done : done + len(output)]
                part[...] = np.frombuffer(output, dtype=np.uint8)[: len(part)]
                done += len(output)
    except zlib.error as error:
        raise LunaError(f"{path}: damaged or truncated compressed data ({error}); copy it again") from error
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error
    if not len(target) <= done <= len(target) + slack or not inflater.eof:
        found = f"more than {len(target) + slack}" if done > len(target) + slack else done
        wanted = f"its header says {len(target)}; the file is truncated or the header is wrong"
        raise LunaError(f"{path}: holds {found} bytes when decompressed, but {wanted}")
    # torch refuses voxels that do not start at a multiple of their size.
    return np.require(target[skip:].view(dtype), dtype.newbyteorder("="), "A").reshape(shape)


def as_hounsfield(voxels: np.ndarray) -> tuple[np.ndarray, int]:
    """Convert voxels to int16, int32 or float32.

    Args:
        voxels: of a CT, in HU, any integers or floating-point numbers.

    Returns:
        The array, the same where it has one of these types, and the number of values that are not finite; these are
        set to ``AIR``.
    """
    if voxels.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            voxels = voxels.astype(np.float32, copy=False)
        count = 0
        for layer in voxels:  # slice by slice: a mapped scan takes memory only for the slices that change
            finite = np.isfinite(layer)
            if not finite.all():
                count += int(np.count_nonzero(~finite))
                layer[~finite] = AIR
        return voxels, count
    if voxels.dtype in (np.int16, np.int32):
        return voxels, 0
    short, limits = np.iinfo(np.int16), np.iinfo(np.int32)
    if short.min <= voxels.min() and voxels.max() <= short.max:
        return voxels.astype(np.int16), 0
    return np.clip(voxels, max(limits.min, np.iinfo(voxels.dtype).min), limits.max).astype(np.int32), 0


def voxels_sha256(voxels: np.ndarray) -> str:
    """Compute a fingerprint of a scan's HU that is the same for every format and type of file.

    Args:
        voxels: array (z, y, x) of a :class:`~luna_monai.scans.Scan`.

    Returns:
        SHA-256, hexadecimal, of the shape and the slices in turn: little-endian int16 where all values of a slice are
        such integers, else float32.
    """
    digest = hashlib.sha256(np.asarray(voxels.shape, dtype="<i8").tobytes())
    limits = np.iinfo(np.int16)
    for layer in voxels:
        stored = layer.astype("<f4")
        if limits.min <= layer.min() and layer.max() <= limits.max:
            short = layer.astype("<i2")
            stored = short if layer.dtype == np.int16 or (short == layer).all() else stored
        digest.update(stored.tobytes())
    return digest.hexdigest()
