"""Voxels: decompressed once where they are compressed, and as Hounsfield units."""

from __future__ import annotations

import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from luna_monai.errors import LunaError

#: In HU: what lies outside of a scan, and what a voxel without a value counts as.
AIR = -1000
#: No number in the header of a CT is larger.
LARGEST = 1e9
#: Compressed bytes that are read at a time, so that memory holds one scan and little else.
CHUNK_BYTES = 1 << 16
#: The largest ratio that zlib can reach: https://zlib.net/zlib_tech.html
MAX_COMPRESSION = 1032
#: zlib's ``wbits`` that accepts both a zlib and a gzip header.
ZLIB_OR_GZIP = 47
GZIP_MAGIC = b"\x1f\x8b"


def inflate_voxels(
    path: Path, offset: int, skip: int, dtype: np.dtype, shape: tuple[int, ...], *, exact: bool
) -> np.ndarray:
    """Decompress voxels, and compare them with their checksum.

    Args:
        path: the file.
        offset: bytes before the compressed data, a zlib stream or one or several gzip streams.
        skip: decompressed bytes before the first voxel.
        dtype: of the voxels in the file.
        shape: of the array.
        exact: whether nothing may follow the last voxel.

    Returns:
        Array in the byte order of the file.

    Raises:
        LunaError: when the data are damaged or truncated, or do not hold what the header says.
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
    except zlib.error as error:
        raise LunaError(f"{path}: damaged or truncated compressed data ({error}); copy it again") from error
    if done < size or (exact and done > size) or not inflater.eof:
        wanted = f"its header says {size}; the file is truncated or the header is wrong"
        raise LunaError(f"{path}: holds {done} bytes when decompressed, but {wanted}")
    return target[skip:].view(dtype).reshape(shape)


def as_hounsfield(stored: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> tuple[np.ndarray, int]:
    """Convert the voxels of a file to HU.

    Args:
        stored: any integers or floating-point numbers.
        slope: factor to HU.
        intercept: HU of the stored value 0.

    Returns:
        The array, int16 where ``stored`` are integers in HU within its range, else float32, without a copy where it has
        this type already; and the number of values that are not finite, which are set to ``AIR``.
    """
    limits = np.iinfo(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then becomes air
        if (slope, intercept) != (1.0, 0.0):
            stored = np.multiply(stored, slope, dtype=np.float32)
            stored += np.float32(intercept)
        elif stored.dtype.kind != "f":
            fits = stored.dtype == np.int16 or (limits.min <= stored.min() and stored.max() <= limits.max)
            return stored.astype(np.int16 if fits else np.float32, copy=False), 0
        voxels = stored.astype(np.float32, copy=False)
    count = 0
    for layer in voxels:  # slice by slice: a mapped scan takes memory only for the slices that change
        wrong = ~np.isfinite(layer)
        if wrong.any():
            count += int(np.count_nonzero(wrong))
            layer[wrong] = AIR
    return voxels, count


def voxels_sha256(voxels: np.ndarray) -> str:
    """Compute a fingerprint of a scan's HU that is the same for every format and type of file.

    Args:
        voxels: array (z, y, x) of a :class:`~luna_monai.scans.Scan`.

    Returns:
        SHA-256, hexadecimal, of the shape and the slices in turn: little-endian int16 where all values of a slice are
        such integers, else float32.
    """
    digest = hashlib.sha256(np.asarray(voxels.shape, dtype="<i8").tobytes())
    for layer in voxels:
        with np.errstate(invalid="ignore"):
            short = layer.astype("<i2")
        digest.update((short if (short == layer).all() else layer.astype("<f4")).tobytes())
    return digest.hexdigest()
