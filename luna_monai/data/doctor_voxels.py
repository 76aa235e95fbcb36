"""What the doctor learns from the voxels of a scan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from luna_monai.errors import LunaError
from luna_monai.scans.scan import read_scan


@dataclass(frozen=True)
class VoxelSummary:
    """The voxels of a scan in a few numbers.

    Args:
        dtype: their type.
        lowest: smallest value, HU.
        highest: largest value, HU.
        air_fraction: part of the voxels that is air or lung.
        padding_fraction: part of the voxels that is below what a scanner can measure.
        whole_numbers: whether all values are finite whole numbers.
        empty_slices: index (z) and value of each slice that holds a single value.
        digest: a checksum of shape and values; equal for equal voxels whatever file they are in.
    """

    dtype: str
    lowest: float
    highest: float
    air_fraction: float
    padding_fraction: float
    whole_numbers: bool
    empty_slices: tuple[tuple[int, float], ...]
    digest: str


def summarize_scan(path: Path, air_hu: tuple[int, int], lowest_hu: int) -> VoxelSummary:
    """Read all voxels of a scan.

    Args:
        path: the scan.
        air_hu: first and last HU of air and lung.
        lowest_hu: HU below which voxels are padding.

    Returns:
        The summary.

    Raises:
        LunaError: when the voxels cannot be read.
    """
    scan = read_scan(path, orientation=None)
    voxels = scan.voxels
    checksum = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    lowest, highest, air, padding, whole = np.inf, -np.inf, 0, 0, True
    empty = []
    # Slice by slice, so that what is derived from the voxels stays small.
    for z, layer in enumerate(voxels):
        low, high = float(layer.min()), float(layer.max())
        lowest, highest = min(lowest, low), max(highest, high)
        if low == high:
            empty.append((z, low))
        air += int(np.count_nonzero((layer >= air_hu[0]) & (layer <= air_hu[1])))
        padding += int(np.count_nonzero(layer < lowest_hu))
        if layer.dtype.kind == "f":
            whole = whole and bool((np.isfinite(layer) & (np.trunc(layer) == layer)).all())
        # The same HU have the same checksum in int16 and in float32.
        checksum.update(np.ascontiguousarray(layer).astype(np.float32 if not whole else np.int32).tobytes())
    return VoxelSummary(
        dtype=str(scan.header.dtype),
        lowest=lowest,
        highest=highest,
        air_fraction=air / voxels.size,
        padding_fraction=padding / voxels.size,
        whole_numbers=whole,
        empty_slices=tuple(empty),
        digest=checksum.hexdigest(),
    )


def summarize_scans(
    paths: Sequence[Path], num_workers: int, air_hu: tuple[int, int], lowest_hu: int
) -> Iterator[VoxelSummary | LunaError]:
    """Read all voxels of many scans, with a progress bar on a terminal.

    Args:
        paths: the scans.
        num_workers: how many are read at a time, each in a thread: decompression and NumPy let others run.
        air_hu: as in :func:`summarize_scan`.
        lowest_hu: as in :func:`summarize_scan`.

    Yields:
        For each scan, in order, the summary, or the error that kept it from being read.
    """

    def summarize(path: Path) -> VoxelSummary | LunaError:
        try:
            return summarize_scan(path, air_hu, lowest_hu)
        except LunaError as error:
            return error

    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        yield from tqdm(pool.map(summarize, paths), total=len(paths), desc="reading voxels", unit="scan", disable=None)
