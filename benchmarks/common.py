"""Functions that the benchmarks share: scans of LUNA16's size, medians, and a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from luna_monai.data import SeriesCache, read_candidates, series_items
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand

SHAPE = (240, 512, 512)  # (z, y, x); LUNA16's median number of slices
CANDIDATES = 620  # per scan, the mean of LUNA16's candidates.csv
SPACING = (0.7, 0.7, 1.25)
SIZE = (32, 48, 48)


def write_dataset(folder: Path, scans: int, *, voxel_files: int | None = None, candidates: int = CANDIDATES) -> Path:
    """Write a LUNA16 dataset folder with uncompressed scans of noise; existing files are kept.

    Args:
        folder: the dataset folder.
        scans: number of scans.
        voxel_files: number of voxel files, which the scans share by hard links; None: one per scan.
        candidates: number of candidates per scan, at random positions.

    Returns:
        The folder.
    """
    random = np.random.default_rng(0)
    volume: np.ndarray | None = None
    z, y, x = SHAPE
    voxel_files = scans if voxel_files is None else min(voxel_files, scans)
    raws: list[Path] = []
    rows = []
    for scan in range(scans):
        uid = f"1.3.6.1.4.1.14519.{scan:04d}"
        subset = folder / f"subset{scan % 10}"
        subset.mkdir(parents=True, exist_ok=True)
        raw = subset / f"{uid}.raw"
        if scan < voxel_files:
            raws.append(raw)
        if not raw.exists():
            if scan < voxel_files:
                if volume is None:
                    volume = np.random.default_rng(1).integers(-1500, 1500, SHAPE, dtype=np.int16)
                np.roll(volume, scan, axis=0).tofile(raw)
            else:
                raw.hardlink_to(raws[scan % voxel_files])
        header = subset / f"{uid}.mhd"
        if not header.exists():  # rewriting it would make caches stale
            header.write_text(
                "ObjectType = Image\nNDims = 3\n"
                "BinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
                f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = {' '.join(map(str, SPACING))}\n"
                f"DimSize = {x} {y} {z}\nElementType = MET_SHORT\nElementDataFile = {raw.name}\n"
            )
        index = random.integers(0, [x, y, z], size=(candidates, 3))
        for number, (px, py, pz) in enumerate((index * SPACING).tolist()):
            rows.append((uid, px, py, pz, int(number == 0)))
    table = pd.DataFrame(rows, columns=["seriesuid", "coordX", "coordY", "coordZ", "class"])
    table.to_csv(folder / "candidates.csv", index=False)
    annotations = table[table["class"] == 1].drop(columns="class").assign(diameter_mm=6.5)
    annotations.to_csv(folder / "annotations.csv", index=False)
    return folder


def transforms() -> list:
    """Return the bundle's deterministic transforms."""
    return [LoadScand("image"), CropCandidatesd("image", SIZE), ClipIntensityRanged("image", -1000, 1000)]


def open_cache(dataset_dir: Path, cache_dir: Path | None) -> tuple[pd.DataFrame, SeriesCache]:
    """Read a dataset's candidates and open their cache."""
    candidates = read_candidates(dataset_dir)
    return candidates, SeriesCache(series_items(candidates, dataset_dir), transforms(), cache_dir)


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_rate(count: int, work: Callable[[], object], repeats: int = 5) -> float:
    """Return ``count`` per second, the median over ``repeats`` calls."""
    return statistics.median(count / seconds(work) for _ in range(repeats))


def show(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row) + " |")
