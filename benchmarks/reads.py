"""Warm random reads of int16 batches, compared with PersistentDataset (one file per crop) and a loop of copies."""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import open_cache, seconds, show, write_dataset
from monai.data import DataLoader, PersistentDataset
from monai.data.utils import json_hashing

from luna_monai.data import CandidateDataset, CandidateLoader, Precache


class FirstUse:
    """A transform that returns the crop with a given index, to fill a PersistentDataset."""

    def __init__(self, crops: CandidateDataset) -> None:
        self.crops = crops

    def __call__(self, row: int) -> torch.Tensor:
        return self.crops[row]["image"].clone()


def consume(loader: object) -> None:
    """Read all batches of a loader."""
    for batch in loader:  # type: ignore[attr-defined]
        del batch


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset_dir = write_dataset(arguments.folder / f"luna{arguments.scans}", arguments.scans)
    candidates, cache = open_cache(dataset_dir, arguments.folder / "cache_reads")
    Precache(cache, 2).run()
    ours = CandidateDataset(candidates, cache)
    _, no_cache = open_cache(dataset_dir, None)
    direct = CandidateDataset(candidates, no_cache)
    from monai.transforms import Lambda

    crops = arguments.folder / "crops"
    monai = PersistentDataset(list(range(len(ours))), Lambda(FirstUse(ours)), crops, hash_func=json_hashing)
    # The result of MONAI's Lambda is cached.
    files = [torch.load(cache.job(index)[0], mmap=True, weights_only=True)["image"] for index in range(len(cache.data))]
    series, position = ours._series, ours._position

    def plain_loop(batch_size: int) -> None:
        order = np.random.default_rng(0).permutation(len(ours))
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            batch = torch.empty((len(chosen), *files[0].shape[1:]), dtype=torch.int16)
            pairs = zip(series[chosen].tolist(), position[chosen].tolist(), strict=True)
            for slot, (number, place) in enumerate(pairs):
                batch[slot] = files[number][place]

    def loader(dataset: object, kind: type, batch_size: int, workers: int, **options: object) -> Callable[[], None]:
        made = kind(dataset, batch_size=batch_size, shuffle=True, num_workers=workers, **options)
        return lambda: consume(made)

    work: dict[tuple[str, int, int], Callable[[], None]] = {}
    for batch_size in (32, 256, 1024):
        work["a loop of row copies", batch_size, 0] = lambda size=batch_size: plain_loop(size)
        for workers in (0, 2):
            more = {"persistent_workers": True} if workers else {}
            work["luna-monai", batch_size, workers] = loader(ours, CandidateLoader, batch_size, workers)
            work["PersistentDataset, one file per crop", batch_size, workers] = loader(
                monai, DataLoader, batch_size, workers, **more
            )
        work["luna-monai's dataset, worker processes", batch_size, 2] = loader(
            ours, DataLoader, batch_size, 2, persistent_workers=True
        )
    work["luna-monai, cache_dir: null", 32, 0] = loader(direct, CandidateLoader, 32, 0)
    rates: dict[tuple[str, int, int], list[float]] = {name: [] for name in work}
    for go in work.values():
        go()
    # In turn, so that other jobs of the machine affect all alike.
    for _ in range(arguments.repeats):
        for name, go in work.items():
            rates[name].append(len(ours) / seconds(go))
    show(
        ["", "batch", "workers", "candidates/s", "luna-monai, ratio"],
        [
            (*name, f"{(middle := statistics.median(rate)):,.0f}",
             f"{statistics.median(rates[('luna-monai', *name[1:])]) / middle:.1f} ×")
            for name, rate in rates.items()
        ],
    )  # fmt: skip
    shutil.rmtree(crops)
    shutil.rmtree(arguments.folder / "cache_reads")


if __name__ == "__main__":
    main()
