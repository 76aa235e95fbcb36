"""Everything about a GPU in one call: network, loader, the bundle's training, engine, and what the device could do.

``python benchmarks/gpu.py FOLDER`` takes some minutes and 5 GB in FOLDER. Without a GPU it runs on the CPU and says so;
``--quick`` takes small sizes, to see whether everything works.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import engine
import torch
from common import open_cache, seconds, show, write_dataset
from network import COMPILED_ON_GPU, ON_CPU, ON_GPU, measure

from luna_monai.apps.bench_loops import OURS, time_training
from luna_monai.apps.workflow import config_files
from luna_monai.data import CandidateDataset, CandidateLoader, Precache
from luna_monai.engines import PrepareCandidateBatch

AIM = 30_000  # training samples a second on one H200


def rate_to_device(dataset: CandidateDataset, batch_size: int, workers: int, device: torch.device) -> float:
    """Return candidates a second, from the warm cache to float32 on the device; the second of two passes."""
    loader = CandidateLoader(
        dataset, num_workers=workers, batch_size=batch_size, shuffle=True, pin_memory=device.type == "cuda"
    )
    prepare = PrepareCandidateBatch()

    def go() -> None:
        for batch in loader:
            prepare(batch, device, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    go()
    return len(dataset) / seconds(go)


def loader_table(folder: Path, scans: int, batch_sizes: Iterable[int], workers: Iterable[int], device: Any) -> None:
    """Print how fast candidates get to the device."""
    candidates, cache = open_cache(write_dataset(folder / f"luna{scans}", scans, voxel_files=10), folder / "cache")
    Precache(cache, os.cpu_count() or 1).run()
    files = CandidateDataset(candidates, cache)
    rows = []
    for batch_size in batch_sizes:
        for number in workers:
            rows.append((batch_size, number, f"{rate_to_device(files, batch_size, number, device):,.0f}"))
        held = CandidateDataset(candidates, cache, device)
        rows.append((batch_size, "cache_on_device", f"{rate_to_device(held, batch_size, 0, device):,.0f}"))
    show(["batch", "workers", "candidates/s to the device"], rows)
    print()


def training_table(folder: Path, scans: int, batch_size: int, samples: int, repeats: int, workers: int) -> None:
    """Print samples a second of the bundle's training, and the roofline of the fastest."""
    common = {
        "dataset_dir": str(folder / f"luna{scans}"), "cache_dir": str(folder / "cache"), "batch_size": batch_size,
        "num_workers": workers,
    }  # fmt: skip
    kinds = {
        "the default": {},
        "cache_on_device": {"cache_on_device": True},
        "compile, cache_on_device": {"compile": True, "cache_on_device": True},
    }
    if not torch.cuda.is_available():
        kinds.pop("compile, cache_on_device")
    found = {
        name: time_training(config_files([]), {**common, **more}, samples, repeats) for name, more in kinds.items()
    }
    show(
        [
            f"training, batch of {batch_size}", "precision", "samples/s", "of the book's loop", "waiting for data",
            "an epoch of LUNA16",
        ],
        [
            (name, times.precision, f"{times.rate(OURS):,.0f}", f"{times.ratio:.1f} ×", f"{times.data_wait:.1f} %",
             f"{495_958 / times.rate(OURS):,.0f} s")
            for name, times in found.items()
        ],
    )  # fmt: skip
    best = max(found.values(), key=lambda times: times.rate(OURS))
    print("\n" + "\n".join(best.roofline.lines(best.rate(OURS))))
    print(f"The aim, {AIM:,} samples/s on one H200, is {100 * best.rate(OURS) / AIM:.0f} % reached.\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put scans and caches")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    print(f"{name}; {os.cpu_count()} cores, torch {torch.__version__}, {platform.platform()}, {date.today()}\n")
    if not on_gpu:
        print("No GPU here: these are figures of the CPU, and none of a GPU has been measured.\n")
    if arguments.quick:
        scans, batch_sizes, workers, samples, repeats, iterations = 2, [4], [0], 8, 1, 5
    else:
        scans, batch_sizes, workers, samples, repeats, iterations = 30, [256, 1024, 4096], [0, 4, 8, 16], 16384, 5, 500
    variants = [*ON_GPU, *([] if arguments.quick else COMPILED_ON_GPU)] if on_gpu else [*ON_CPU[:2], ON_CPU[-2]]
    for batch_size in batch_sizes:
        for training in (True, False):
            measure(variants, training, batch_size, device, repeats)
    loader_table(arguments.folder, scans, batch_sizes, workers, device)
    training_table(arguments.folder, scans, batch_sizes[-1], samples, repeats, 0 if arguments.quick else 8)
    engine.measure(arguments.folder, iterations, repeats, batch_sizes[-1])


if __name__ == "__main__":
    main()
