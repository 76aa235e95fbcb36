"""Time of the whole pre-cache command for 10 to 90 scans, which must grow linearly."""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from common import CANDIDATES, seconds, show, write_dataset


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--scans", type=int, nargs="+", default=[10, 30, 50, 70, 90])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    cache = arguments.folder / "cache_growth"
    took: dict[int, list[float]] = {scans: [] for scans in arguments.scans}
    for _ in range(arguments.repeats):
        for scans, times in took.items():
            dataset = write_dataset(arguments.folder / f"luna{scans}", scans, voxel_files=10)
            command = [sys.executable, "-m", "luna_monai", "precache", "--num-workers", str(arguments.workers)]
            command += ["--dataset-dir", str(dataset), "--cache-dir", str(cache)]
            times.append(seconds(lambda: subprocess.run(command, check=True, capture_output=True)))  # noqa: B023
            shutil.rmtree(cache)
    medians = {scans: statistics.median(times) for scans, times in took.items()}
    slope, start = np.polyfit(list(medians), list(medians.values()), 1)
    show(
        ["scans", "candidates", "seconds", "linear fit"],
        [(n, f"{n * CANDIDATES:,}", f"{t:.1f}", f"{start + slope * n:.1f}") for n, t in medians.items()],
    )
    print(f"\n{start:.1f} s at the start, {slope:.2f} s per scan")


if __name__ == "__main__":
    main()
