"""Decompression of voxels, and their conversion to Hounsfield units."""

import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError

#: HU of air, the value outside of a scan and of voxels without data.
AIR = -1000
#: Upper limit of numbers in the header of a CT.
LARGEST = 1e9
#: Number of compressed bytes read at a time, so that little more than the decompressed scan is in memory.
CHUNK_BYTES = 1 << 16
#: Largest compression ratio of zlib: https://zlib.net/zlib_tech.html
MAX_COMPRESSION = 1032
#: zlib's ``wbits`` that accepts both a zlib and a gzip header.
ZLIB_OR_GZIP = 47
GZIP_MAGIC = b"\x1f\x8b"


def inflate_voxels(
    path: Path, offset: int, skip: int, dtype: np.dtype, shape: tuple[int, ...], *, exact: bool
) -> np.ndarray:
    """Decompress voxels and verify their checksum.

    Args:
        path: the file.
        offset: number of bytes before the compressed data, which are a zlib stream or one or several gzip streams.
        skip: number of decompressed bytes before the first voxel.
        dtype: type of the voxels in the file.
        shape: shape of the array, (z, y, x).
        exact: whether the decompressed data must end after the last voxel.

    Returns:
        Array (z, y, x) in the byte order of the file.

    Raises:
        LunaError: when the data are damaged or truncated, or do not have the size that the header requires.
    """
    target = np.empty(skip + math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    size, view, done, inflater = len(target), target.data, 0, zlib.decompressobj(ZLIB_OR_GZIP)
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while piece := stream.read(CHUNK_BYTES):
                while piece and (not inflater.eof or piece.startswith(GZIP_MAGIC)):
                    inflater = zlib.decompressobj(ZLIB_OR_GZIP) if inflater.eof else inflater
                    output = inflater.decompress(piece)
                    view[done : done + len(output)] = output[: max(size - done, 0)]
                    done += len(output)
                    piece = inflater.unused_data
                    piece += stream.read(1) if piece == GZIP_MAGIC[:1] else b""  # the rest is in the next chunk
    except zlib.error as error:
        raise LunaError(f"{path}: damaged or truncated compressed data ({error}); copy it again") from error
    if done < size or (exact and done > size) or not inflater.eof:
        reason = "the file is truncated, or the header belongs to another scan; copy the scan again"
        raise LunaError(f"{path}: contains {done} bytes when decompressed, expected {size}: {reason}")
    return target[skip:].view(dtype).reshape(shape)


def as_hounsfield(stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> tuple[np.ndarray, int]:
    """Convert the voxels of a file to HU.

    Args:
        stored: array of integers or floating-point numbers.
        slope: factor from stored values to HU.
        intercept: HU of the stored value 0.

    Returns:
        The array in HU, and the number of values that were not finite, which are set to ``AIR``. The type is int16 if
        ``stored`` are integers in HU within its range, else float32. An array that has this type is not copied.
    """
    limits = np.iinfo(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are set to air below
        if (slope, intercept) != (1.0, 0.0):
            stored = np.multiply(stored, slope, dtype=np.float32)
            stored += np.float32(intercept)
        elif stored.dtype.kind != "f":
            fits = stored.dtype == np.int16 or (limits.min <= stored.min() and stored.max() <= limits.max)
            return stored.astype(np.int16 if fits else np.float32, copy=False), 0
        voxels = stored.astype(np.float32, copy=False)
    count = 0
    for layer in voxels:  # slice by slice, so that only slices that change take memory in a mapped scan
        wrong = ~np.isfinite(layer)
        if wrong.any():
            count += int(np.count_nonzero(wrong))
            layer[wrong] = AIR
    return voxels, count


def voxels_sha256(voxels: np.ndarray) -> str:
    """Compute a hash of a scan's HU that does not depend on the file format or the type of the voxels.

    Args:
        voxels: array (z, y, x) of a :class:`~luna_monai.scans.Scan`.

    Returns:
        SHA-256 of the shape and of each slice, as 64 hexadecimal digits. A slice is hashed as little-endian int16 if
        all its values are integers in that range, else as float32.
    """
    digest = hashlib.sha256(np.asarray(voxels.shape, dtype="<i8").tobytes())
    for layer in voxels:
        with np.errstate(invalid="ignore"):
            short = layer.astype("<i2")
        digest.update((short if (short == layer).all() else layer.astype("<f4")).tobytes())
    return digest.hexdigest()
