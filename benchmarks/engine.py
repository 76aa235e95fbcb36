"""Overhead of MONAI's engine and the bundle's handlers per iteration, compared with a bare loop.

The network is a single linear layer, so that overhead dominates. It is also given relative to a real training step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import show, write_dataset
from loops import epoch_by_epoch, quiet
from monai.engines import Trainer
from network import AS_TRAINED_ON_CPU, AS_TRAINED_ON_GPU, make_step
from speed import time_in_turn

from luna_monai.workflow import config_files, load_workflow

NETWORK = "$torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 48 * 48, 2))"


def make_loops(
    dataset_dir: Path, cache_dir: Path, output_dir: Path, iterations: int, repeats: int, handlers: bool
) -> tuple[Callable[[], object], Trainer, torch.device]:
    """Return a bare loop and the bundle's trainer, both for ``iterations`` batches of 4, and the device."""
    overrides = {
        "dataset_dir": str(dataset_dir), "cache_dir": str(cache_dir), "output_dir": str(output_dir), "batch_size": 4,
        "samples_per_epoch": 4 * iterations, "max_epochs": repeats + 2,
        "network_def": NETWORK, "network": "$@network_def.to(@device)", "precision": "float32",
        "train#augmentation": None,
    }  # fmt: skip
    overrides |= {"val_interval": repeats + 3} if handlers else {"train#handlers": []}
    workflow = load_workflow("training", config_files([]), overrides)
    get = workflow.parser.get_parsed_content
    workflow.initialize()
    trainer, network, optimizer = get("train#trainer"), get("network"), get("optimizer")
    get("precacher").run()

    def bare() -> None:
        for batch in get("train#dataloader"):
            image, label = get("train#prepare_batch")(batch, get("device"), non_blocking=True)
            network.train()
            optimizer.zero_grad(set_to_none=True)
            get("loss_function")(network(image), label).mean().backward()
            optimizer.step()
        if get("device").type == "cuda":
            torch.cuda.synchronize(get("device"))

    return bare, trainer, get("device")


def measure(folder: Path, iterations: int, repeats: int, batch_size: int) -> float:
    """Print the table; return the overhead per iteration, in seconds."""
    dataset_dir = write_dataset(folder / "luna2", 2)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        places = dataset_dir, folder / "cache", Path(output)
        bare, engine, device = make_loops(*places, iterations, repeats, handlers=False)
        _, bundle, _ = make_loops(*places, iterations, repeats, handlers=True)
        variant = AS_TRAINED_ON_GPU if device.type == "cuda" else AS_TRAINED_ON_CPU
        step = make_step(variant, True, batch_size, device)
        with quiet(), epoch_by_epoch(engine) as plain, epoch_by_epoch(bundle) as whole:
            seconds = time_in_turn({"bare loop": bare, "engine and metrics": plain, "all handlers": whole}, repeats)
            real = statistics.median(time_in_turn({"": step}, repeats)[""])
    times = {name: statistics.median(values) / iterations for name, values in seconds.items()}
    show(
        ["", "ms per iteration", "overhead, ms", f"of a training step of {batch_size} samples"],
        [
            (name, f"{1000 * value:.2f}", f"{1000 * (value - times['bare loop']):.2f}",
             f"{100 * (value - times['bare loop']) / real:.2f} %")
            for name, value in times.items()
        ],
    )  # fmt: skip
    print(f"\nA training step of {batch_size} samples ({variant.name}) takes {1000 * real:.1f} ms.\n")
    return times["all handlers"] - times["bare loop"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="samples in the real training step")
    arguments = parser.parse_args()
    measure(arguments.folder, arguments.iterations, arguments.repeats, arguments.batch_size)


if __name__ == "__main__":
    main()
