"""Filling the cache: the whole command compared with a lower bound and with the book's cache.

The lower bound ("floor") is the necessary work: map the voxels, crop, clip, write, fsync, in one running process per
core. The time of the command includes the start of Python.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from book import BookDataset
from common import CANDIDATES, SHAPE, SIZE, SPACING, open_cache, seconds, show, write_dataset
from torch.utils.data import DataLoader

from luna_monai.scans import find_scans


def floor_of_series(job: tuple[str, np.ndarray, str]) -> None:
    """Map, crop, clip, write and fsync one series."""
    raw, centers, target = job
    volume = np.memmap(raw, dtype=np.int16, mode="r", shape=SHAPE)
    crops = np.empty((len(centers), *SIZE), dtype=np.int16)
    starts = np.clip(np.round(centers - np.array(SIZE) / 2).astype(int), 0, np.array(SHAPE) - SIZE)
    for crop, (z, y, x) in zip(crops, starts.tolist(), strict=True):
        crop[...] = volume[z : z + SIZE[0], y : y + SIZE[1], x : x + SIZE[2]]
    crops.clip(-1000, 1000, crops)
    with open(target, "wb") as file:  # noqa: PTH123
        crops.tofile(file)
        os.fsync(file.fileno())


def consume(loader: DataLoader) -> None:
    """Read all batches of a loader."""
    for _ in loader:
        pass


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--scans", type=int, default=50)
    parser.add_argument("--book-scans", type=int, default=4, help="scans for the book's cache, which is slow")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    dataset = write_dataset(arguments.folder / f"luna{arguments.scans}", arguments.scans, voxel_files=10)
    small = write_dataset(arguments.folder / f"luna{arguments.book_scans}", arguments.book_scans)
    cache = arguments.folder / "cache"
    floor, command, book = [], [], []
    _, items = open_cache(dataset, None)
    jobs = [
        (str(item["image"].files[1]), np.round(item["center_xyz"] / SPACING)[:, ::-1], f"{cache}/{number}")
        for number, item in enumerate(items.data)
    ]
    candidates, _ = open_cache(small, None)
    whole = [sys.executable, "-m", "luna_monai", "precache", "--num-workers", str(arguments.workers)]
    for _ in range(arguments.repeats):
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir()
        with multiprocessing.Pool(arguments.workers) as pool:
            floor.append(len(jobs) * CANDIDATES / seconds(lambda: pool.map(floor_of_series, jobs, chunksize=1)))
        shutil.rmtree(cache)
        run = [*whole, "--dataset-dir", str(dataset), "--cache-dir", str(cache)]
        took = seconds(functools.partial(subprocess.run, run, check=True, capture_output=True))
        command.append(len(jobs) * CANDIDATES / took)
        shutil.rmtree(cache)
        by_series = candidates.sort_values("seriesuid")
        loader = DataLoader(
            BookDataset(by_series, find_scans(small), cache), batch_size=32, num_workers=arguments.workers
        )
        book.append(len(candidates) / seconds(functools.partial(consume, loader)))
        shutil.rmtree(cache)
    rates = {"floor": floor, "luna-monai precache": command, "the book's diskcache": book}
    ours = statistics.median(command)
    show(
        ["", "candidates/s", "lowest", "highest", "luna-monai, ratio"],
        [
            (name, f"{(middle := statistics.median(rate)):,.0f}", f"{min(rate):,.0f}", f"{max(rate):,.0f}",
             f"{ours / middle:.2f} ×")
            for name, rate in rates.items()
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
