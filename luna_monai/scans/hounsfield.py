"""Voxels of any type as Hounsfield units in a type that torch computes with."""

from __future__ import annotations

import hashlib

import numpy as np

#: In HU: what lies outside of a scan, and what a voxel without a value counts as.
AIR = -1000


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
