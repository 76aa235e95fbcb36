"""All GPU benchmarks in one call: network, operations, loader, the bundle's training, engine, and the roofline.

``python benchmarks/gpu.py FOLDER`` takes some minutes per part and 5 GB in FOLDER; ``--parts`` selects parts. If a part
fails, this is reported and the next one starts. Without a GPU it runs on the CPU and reports this. ``--quick`` uses
small sizes, to check that everything works.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import engine
import torch
from common import open_cache, seconds, show, write_dataset
from loops import OURS, time_training
from network import AS_TRAINED_ON_CPU, AS_TRAINED_ON_GPU, COMPILED_ON_GPU, ON_CPU, ON_GPU, make_step, measure
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import RandomSampler

from luna_monai.data import CandidateDataset, CandidateLoader, Precache
from luna_monai.training import PrepareCandidateBatch
from luna_monai.workflow import config_files

AIM = 30_000  # goal: training samples per second on one H200
_BATCHES = 16  # per pass through the loader, so that the start has little weight


def operations_table(batch_size: int, device: torch.device, count: int = 15) -> None:
    """Print where the time of a training step is spent: kernels on a GPU, operations on a CPU."""
    on_gpu = device.type == "cuda"
    step = make_step(AS_TRAINED_ON_GPU if on_gpu else AS_TRAINED_ON_CPU, True, batch_size, device)
    step()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == kind
    }
    total = sum(times.values())
    largest = sorted(times, key=lambda name: times[name], reverse=True)[:count]
    show(
        [f"a training step of {batch_size} samples", "ms", "%"],
        [(f"`{name[:100]}`", f"{times[name] / 1000:.2f}", f"{100 * times[name] / total:.1f}") for name in largest],
    )
    print(f"\nTotal: {total / 1000:.1f} ms.\n", flush=True)


def rate_to_device(dataset: CandidateDataset, batch_size: int, workers: int, device: torch.device) -> float:
    """Return candidates per second, from the warm cache to float32 on the device; the second of two passes."""
    loader = CandidateLoader(
        dataset,
        num_workers=workers,
        batch_size=batch_size,
        sampler=RandomSampler(dataset, replacement=True, num_samples=_BATCHES * batch_size),
        pin_memory=device.type == "cuda",
    )
    prepare = PrepareCandidateBatch()

    def go() -> None:
        for batch in loader:
            prepare(batch, device, non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    go()
    return _BATCHES * batch_size / seconds(go)


def loader_table(folder: Path, scans: int, batch_sizes: Iterable[int], workers: Iterable[int], device: Any) -> None:
    """Print how fast candidates are transferred to the device."""
    candidates, cache = open_cache(write_dataset(folder / f"luna{scans}", scans, voxel_files=10), folder / "cache")
    Precache(cache, os.cpu_count() or 1).run()
    files = CandidateDataset(candidates, cache)
    rows: list[tuple[object, ...]] = []
    if device.type == "cuda":
        here, there = (torch.empty(2**30, dtype=torch.uint8, pin_memory=pin) for pin in (True, False))
        there = there.to(device)

        def copy() -> None:
            there.copy_(here, non_blocking=True)
            torch.cuda.synchronize(device)

        copy()
        rows.append(("", "the bus alone, int16", f"{2**30 / seconds(copy) / 147_456:,.0f}"))
    for batch_size in batch_sizes:
        for number in workers:
            rows.append((batch_size, number, f"{rate_to_device(files, batch_size, number, device):,.0f}"))
    show(["batch", "workers", "candidates/s to the device"], rows)
    print(flush=True)


def training_table(folder: Path, scans: int, batch_size: int, samples: int, repeats: int, workers: int) -> None:
    """Print samples per second of the bundle's training, and the roofline of the fastest setting."""
    common = {
        "dataset_dir": str(write_dataset(folder / f"luna{scans}", scans, voxel_files=10)),
        "cache_dir": str(folder / "cache"), "batch_size": batch_size, "num_workers": workers,
    }  # fmt: skip
    # The book's loader sends float32 through shared memory, two batches per process.
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else float("inf")
    book_workers = min(workers, int(room // (3 * batch_size * 4 * 32 * 48 * 48)))
    kinds = {"the default": {}, "compile": {"compile": True}} if torch.cuda.is_available() else {"the default": {}}
    found = {}
    for name, more in kinds.items():
        attempt(name, lambda name=name, more=more: found.update(  # type: ignore[misc]
            {name: time_training(config_files([]), {**common, **more}, samples, repeats, book_workers)}
        ))  # fmt: skip
    show(
        [
            f"training, batch of {batch_size}", "precision", "samples/s",
            "ratio to the book's loop", "waiting for data", "epoch of LUNA16",
        ],
        [
            (name, times.precision, f"{times.rate(OURS):,.0f}", f"{times.ratio:.1f} ×", f"{times.data_wait:.1f} %",
             f"{495_958 / times.rate(OURS):,.0f} s")
            for name, times in found.items()
        ],
    )  # fmt: skip
    best = max(found.values(), key=lambda times: times.rate(OURS))
    print("\n" + "\n".join(best.roofline.lines(best.rate(OURS))))
    print(f"{100 * best.rate(OURS) / AIM:.0f} % of the goal of {AIM:,} samples/s on one H200.\n", flush=True)


def attempt(what: str, work: Callable[[], object]) -> bool:
    """Run a part and report an error instead of raising it; return whether it succeeded."""
    try:
        work()
    except Exception as error:
        print(f"FAILED: {what}: {type(error).__name__}: {error}\n", flush=True)
        traceback.print_exc()
        return False
    return True


def main() -> int:
    """Run the benchmark; return 1 if a part has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--quick", action="store_true", help="use small sizes")
    names = ("network", "operations", "loader", "training", "engine")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="parts to measure (default: all)")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    print(f"{name}; {os.cpu_count()} cores, torch {torch.__version__}, {platform.platform()}, {date.today()}\n")
    if on_gpu:
        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}\n")
    else:
        print("No GPU found: all results are for the CPU.\n")
    if arguments.quick:
        scans, batch_sizes, workers, samples, repeats, iterations = 2, [4], [0], 8, 1, 5
    else:
        # Enough training samples for a round to take seconds on a GPU: 16 batches of 4,096.
        scans, batch_sizes, workers, samples, repeats, iterations = 30, [256, 1024, 4096], [0, 4, 8, 16], 65536, 5, 500
    largest = batch_sizes[-1]

    def network() -> None:
        for batch_size in batch_sizes:
            # Each compilation takes about a minute.
            compiled = COMPILED_ON_GPU if on_gpu and not arguments.quick and batch_size == largest else []
            for training in (True, False):
                variants = [*ON_GPU, *compiled] if on_gpu else [*ON_CPU[:2], AS_TRAINED_ON_CPU]
                measure(variants, training, batch_size, device, repeats)

    parts: dict[str, Callable[[], object]] = {
        "network": network,
        "operations": lambda: operations_table(largest, device),
        "loader": lambda: loader_table(arguments.folder, scans, batch_sizes, workers, device),
        "training": lambda: training_table(
            arguments.folder, scans, largest, samples, min(repeats, 3), 0 if arguments.quick else 8
        ),
        "engine": lambda: engine.measure(arguments.folder, iterations, repeats, largest),
    }
    failed = [part for part in arguments.parts if not attempt(part, parts[part])]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
