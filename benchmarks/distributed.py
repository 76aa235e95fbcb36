"""One process compared with several on the same cores: training with equal batches, prediction of the same scans.

python benchmarks/distributed.py FOLDER
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ignite.distributed as idist
from common import show
from ignite.engine import Engine, Events


class EpochTimes:
    """Handler of a trainer: prints the training samples per second of each epoch, without validation."""

    def __init__(self) -> None:
        self._start = 0.0
        self._samples = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def _begin(self) -> None:
        self._start, self._samples = time.perf_counter(), 0

    def _count(self, engine: Engine) -> None:
        self._samples += len(engine.state.batch["row"])
        if engine.state.iteration % engine.state.epoch_length == 0 and idist.get_rank() == 0:
            rate = self._samples * idist.get_world_size() / (time.perf_counter() - self._start)
            print(f"samples a second: {rate}", flush=True)


def training_rate(command: list[str], environment: dict[str, str], run: Path) -> float:
    """Train, and return the median of the samples per second of all epochs but the first."""
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    shutil.rmtree(run)
    lines = [line for line in output.splitlines() if line.startswith("samples a second: ")]
    return statistics.median([float(line.rsplit(" ", 1)[1]) for line in lines][1:])


def main() -> None:
    """Run in turn with one process and with several, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for scans, caches and runs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="total over all processes")
    parser.add_argument("--batches", type=int, default=10, help="training samples per epoch")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of a training, after one that is not timed")
    parser.add_argument("--scans", type=int, default=6, help="synthetic scans for training and prediction")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; each runs everything once")
    arguments = parser.parse_args()
    folder = arguments.folder
    luna_monai = [sys.executable, "-m", "luna_monai"]
    dataset_dir, run = folder / "luna", folder / "run"
    if not dataset_dir.exists():
        subprocess.run([*luna_monai, "synth", str(dataset_dir), "--scans", str(arguments.scans)], check=True)
    overlay = folder / "epoch_times.yaml"
    overlay.write_text("+train#handlers:\n  - _target_: distributed.EpochTimes\n")
    epochs = arguments.epochs + 1
    training = [
        *("train", "--config", str(overlay), "--dataset-dir", str(dataset_dir), "--cache-dir", str(folder / "cache")),
        *("--output-dir", str(run), "--batch-size", str(arguments.batch_size), "--epochs", str(epochs)),
        *(f"val_interval={epochs + 1}", f"samples_per_epoch={arguments.batch_size * arguments.batches}"),
    ]
    prediction = ["predict", str(dataset_dir), "--output", str(folder / "predictions.csv")]
    cores = len(os.sched_getaffinity(0))
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    works = ("training, float32, samples/s", "training, auto, samples/s", "prediction, scans/min, including the start")
    rates: dict[tuple[str, int], list[float]] = {(work, n): [] for work in works for n in (1, arguments.processes)}
    for number in range(arguments.repeats):
        for (work, processes), values in rates.items():
            environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": str(max(cores // processes, 1))}
            distributed = ["--distributed", str(processes)] if processes > 1 else []
            if work.startswith("training"):
                command = [*luna_monai, *training, *distributed, f"precision={work.split(', ')[1]}"]
                values.append(training_rate(command, environment, run))
            else:
                start = time.perf_counter()
                subprocess.run(
                    [*luna_monai, *prediction, *distributed], env=environment, check=True, stdout=subprocess.DEVNULL
                )
                values.append(60 * arguments.scans / (time.perf_counter() - start))
        print(f"round {number + 1} of {arguments.repeats}", file=sys.stderr, flush=True)
    rows = []
    for (work, processes), values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[work, 1], strict=True))
        figures = (statistics.median(values), min(values), max(values))
        threads = max(cores // processes, 1)
        rows.append((work, processes, threads, *(f"{value:.1f}" for value in figures), f"{ratio:.2f} ×"))
    show(["", "processes", "threads per process", "median", "lowest", "highest", "ratio to one process"], rows)


if __name__ == "__main__":
    main()
