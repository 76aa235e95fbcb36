"""Where the time of training is spent: the book's loop and the bundle's, measured with torch's profiler.

The profiler slows everything down a little. On a CPU, times are totals over all threads; on a GPU, times of kernels.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from book_loop import BookLoop
from common import show, write_dataset
from loops import epoch_by_epoch, quiet
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from luna_monai.workflow import config_files, load_workflow

#: Part of the work -> parts of the names of its operations; the first match counts.
PARTS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "pooling": ("max_pool",),
    "batch normalization": ("batch_norm",),
    "ReLU": ("clamp_min", "threshold_backward", "relu"),
    "augmentation": ("grid_sampler", "affine_grid", "randn", "normal_", "bmm", "clamp"),
    "optimizer": ("optimizer", "addcmul", "addcdiv", "lerp", "sqrt", "_fused"),
    "reading and copying batches": ("copy", "stack", "cat", "dataloader", "next", "contiguous", "clone", "to_copy"),
    "filling with zeros": ("fill", "zero"),
}


@contextmanager
def loops(folder: Path, samples: int, rounds: int) -> Iterator[dict[str, Callable[[], object]]]:
    """Yield the book's loop and the bundle's, in float32 and with ``precision: auto``."""
    dataset_dir = write_dataset(folder / "luna2", 2)

    @contextmanager
    def bundle(precision: str) -> Iterator[tuple[Callable[[], object], object]]:
        with tempfile.TemporaryDirectory(dir=folder) as output:
            overrides = {
                "dataset_dir": str(dataset_dir), "cache_dir": str(folder / "cache"), "output_dir": output,
                "max_epochs": rounds + 1, "val_interval": rounds + 2, "samples_per_epoch": samples,
                "precision": precision,
            }  # fmt: skip
            workflow = load_workflow("training", config_files([]), overrides)
            workflow.initialize()
            get = workflow.parser.get_parsed_content
            with quiet():
                get("precacher").run()
                with epoch_by_epoch(get("train#trainer")) as train:
                    yield train, get
                get("run_state").close()

    with bundle("float32") as (plain, get), bundle("auto") as (fast, _):
        book = BookLoop(get("train#dataset"), samples, get("batch_size"), 0, get("device"))
        yield {"the book's loop": book.train, "luna-monai, float32": plain, "luna-monai, auto": fast}


def parts_of(work: Callable[[], object], samples: int) -> Counter[str]:
    """Profile a function; return milliseconds per sample by part."""
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        work()
    milliseconds: Counter[str] = Counter()
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel; its time counts for the operation that started it
        name = event.key.lower()
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        milliseconds[part] += microseconds / 1000 / samples
    return milliseconds


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--samples", type=int, default=128)
    arguments = parser.parse_args()
    found = {}
    with loops(arguments.folder, arguments.samples, 2) as work:
        for name, go in work.items():
            go()  # warm-up
            found[name] = parts_of(go, arguments.samples)
    total = {name: sum(parts.values()) for name, parts in found.items()}
    rows: list[tuple[str, ...]] = []
    for part in [*PARTS, "other"]:
        rows.append((part, *(f"{ms[part]:.2f} ({100 * ms[part] / total[name]:.0f} %)" for name, ms in found.items())))
    rows.append(("all", *(f"{value:.2f}" for value in total.values())))
    show(["ms per sample", *found], rows)


if __name__ == "__main__":
    main()
