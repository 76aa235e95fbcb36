"""Fifty epochs of the bundle's training and validation on small data: memory and open files must not grow."""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
from common import show, write_dataset
from ignite.engine import Events
from loops import quiet
from memory import memory_in_use
from throughput import ThroughputHandler

from luna_monai.workflow import config_files, load_workflow


def memory_held() -> float:
    """Return the memory in use in MB, after freed memory is returned; what the C library keeps varies by tens of MB."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return memory_in_use() / 1e6


def main() -> None:
    """Run the benchmark; the exit status is 1 if memory or the number of open files grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--samples", type=int, default=64, help="samples per epoch")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--allowed", type=float, default=0.1, help="allowed growth in MB per epoch")
    arguments = parser.parse_args()
    dataset_dir = write_dataset(arguments.folder / "luna_soak", 2, candidates=32)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as output, quiet():
        overrides = {
            "dataset_dir": str(dataset_dir), "cache_dir": str(arguments.folder / "cache"), "output_dir": output,
            "max_epochs": arguments.epochs, "samples_per_epoch": arguments.samples, "batch_size": 16,
            "num_workers": arguments.num_workers,
        }  # fmt: skip
        workflow = load_workflow("training", config_files([]), overrides)
        get = workflow.parser.get_parsed_content
        workflow.initialize()
        throughput = ThroughputHandler()
        process = psutil.Process()
        open_files: list[int] = []
        memory: list[float] = []
        trainer = get("train#trainer")
        throughput.attach(trainer)
        trainer.add_event_handler(Events.EPOCH_STARTED, lambda: open_files.append(process.num_fds()))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: memory.append(memory_held()))
        workflow.run()
        workflow.finalize()
    show(
        ["epoch", "memory, MB", "open files", "samples/s"],
        [
            (number + 1, f"{memory[number]:,.0f}", open_files[number],
             f"{throughput.epochs[number]['samples_per_second']:.0f}")
            for number in range(len(memory)) if number in (0, len(memory) - 1) or number % 5 == 4
        ],
    )  # fmt: skip
    settled = memory[len(memory) // 5 :]  # the first epochs fill memory pools
    slope = float(np.polyfit(range(len(settled)), settled, 1)[0])
    files = statistics.median(open_files[-5:]) - statistics.median(open_files[len(open_files) // 5 :][:5])
    print(f"\n{slope:+.3f} MB per epoch after warm-up, {files:+.0f} open files")
    if slope > arguments.allowed or files > 0:
        sys.exit(f"growth of more than {arguments.allowed} MB per epoch or 0 files")


if __name__ == "__main__":
    main()
