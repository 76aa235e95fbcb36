"""Time from the command to the first training batch, with tables and a warm cache of the size of LUNA16.

    python benchmarks/startup.py FOLDER

The dataset has 888 series and 551,065 candidates, like LUNA16. Scans and cached candidates are sparse files of full
size, which take 160 MB on disk instead of 200 GB.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import SHAPE, SPACING, open_cache, show
from ignite.engine import Engine, Events

from luna_monai.data.cache import SeriesCache

SERIES, CANDIDATES, NODULES = 888, 551_065, 1_351
LONGEST_S = 15  # goal


class FirstBatch:
    """Handler of a trainer: prints the time of the first batch, and ends the process."""

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._stop)

    def _stop(self) -> None:
        print(f"first batch at {time.time()}", flush=True)
        os._exit(0)


def write_full_dataset(folder: Path) -> Path:
    """Write tables of LUNA16's size with random numbers, and scans without voxels; existing files are kept."""
    if (folder / "candidates.csv").exists():
        return folder
    random = np.random.default_rng(0)
    z, y, x = SHAPE
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{10**29 + number}" for number in range(SERIES)]
    for number, uid in enumerate(uids):
        subset = folder / f"subset{number % 10}"
        subset.mkdir(parents=True, exist_ok=True)
        with (subset / f"{uid}.raw").open("wb") as file:
            file.truncate(2 * x * y * z)
        (subset / f"{uid}.mhd").write_text(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
            f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = {' '.join(map(str, SPACING))}\n"
            f"DimSize = {x} {y} {z}\nElementType = MET_SHORT\nElementDataFile = {uid}.raw\n"
        )
    points = random.uniform(0, [side - 1 for side in (x, y, z)], size=(CANDIDATES, 3)) * SPACING
    table = pd.DataFrame(points.round(4), columns=["coordX", "coordY", "coordZ"])
    table.insert(0, "seriesuid", np.sort(random.choice(uids, CANDIDATES)))
    table["class"] = (random.permutation(CANDIDATES) < NODULES).astype(int)
    nodules = table[table["class"] == 1].drop(columns="class")
    nodules.assign(diameter_mm=6.5).to_csv(folder / "annotations.csv", index=False)
    table.to_csv(folder / "candidates.csv", index=False)
    return folder


def write_hollow_cache(cache: SeriesCache) -> None:
    """Write the files of a cache as sparse files without voxels."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for number in cache.missing():
        path, item, _ = cache.job(number)
        count = len(item["row"])
        with FakeTensorMode():
            image = torch.empty((count, 1, *cache.spatial_size), dtype=torch.int16)
            center_irc = torch.empty((count, 3), dtype=torch.int64)
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            content = {"image": image, "center_irc": center_irc, "name": path.name}
            torch.save(content, path)


def main() -> None:
    """Write the data, start training several times, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the data")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    dataset_dir = write_full_dataset(arguments.folder / "luna")
    _, cache = open_cache(dataset_dir, arguments.folder / "cache")
    write_hollow_cache(cache)
    overlay = arguments.folder / "first_batch.yaml"
    overlay.write_text("+train#handlers:\n  - _target_: startup.FirstBatch\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    }
    command = [
        *(sys.executable, "-m", "luna_monai", "train", "--config", str(overlay), "--dataset-dir", str(dataset_dir)),
        *("--cache-dir", str(cache.cache_dir), "--output-dir", str(arguments.folder / "run")),
    ]
    passed, busy = [], []
    for _ in range(arguments.repeats + 1):
        start, used = time.time(), processor_seconds()
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        passed.append(float(output.rsplit("first batch at ", 1)[1]) - start)
        busy.append(processor_seconds() - used)
        shutil.rmtree(arguments.folder / "run", ignore_errors=True)
    show(
        ["", "seconds", "lowest", "highest", "processor time, s"],
        [
            ("first start", f"{passed[0]:.1f}", "", "", f"{busy[0]:.1f}"),
            (
                f"{arguments.repeats} further starts",
                *(f"{choose(passed[1:]):.1f}" for choose in (statistics.median, min, max)),
                f"{statistics.median(busy[1:]):.1f}",
            ),
            ("goal", f"{LONGEST_S}", "", "", ""),
        ],
    )


def processor_seconds() -> float:
    """Return the processor time of all child processes, which is more stable on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
