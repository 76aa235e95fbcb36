"""One process against several with the same batches, on the same cores.

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
from common import show, write_dataset
from ignite.engine import Engine, Events


class EpochTimes:
    """Handler of a trainer: prints how many samples a second each epoch has trained on, validation left out."""

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


def main() -> None:
    """Train in turn with one process and with several, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the data go")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--batches", type=int, default=10, help="in an epoch")
    parser.add_argument("--repeats", type=int, default=5, help="epochs, after one that is not timed")
    arguments = parser.parse_args()
    folder = arguments.folder
    overlay = folder / "epoch_times.yaml"
    dataset_dir = write_dataset(folder / "luna", scans=2)
    overlay.write_text("+train#handlers:\n  - _target_: distributed.EpochTimes\n")
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    cores = len(os.sched_getaffinity(0))
    epochs = arguments.repeats + 1
    settings = [
        *("--dataset-dir", str(dataset_dir), "--cache-dir", str(folder / "cache"), "--output-dir", str(folder / "run")),
        *("--batch-size", str(arguments.batch_size), "--epochs", str(epochs), f"val_interval={epochs + 1}"),
        f"samples_per_epoch={arguments.batch_size * arguments.batches}",
    ]
    rows = []
    for precision in ("float32", "auto"):
        rates = {}
        for processes in (1, arguments.processes):
            distributed = ["--distributed", str(processes)] if processes > 1 else []
            command = [sys.executable, "-m", "luna_monai", "train", *distributed, "--config", str(overlay), *settings]
            output = subprocess.run(
                [*command, f"precision={precision}"],
                env=os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": str(max(cores // processes, 1))},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            shutil.rmtree(folder / "run")
            lines = [line for line in output.splitlines() if line.startswith("samples a second: ")]
            rates[processes] = [float(line.rsplit(" ", 1)[1]) for line in lines][1:]
        for processes, values in rates.items():
            middle = statistics.median(values)
            rows.append(
                (
                    precision,
                    processes,
                    max(cores // processes, 1),
                    *(f"{value:.1f}" for value in (middle, min(values), max(values))),
                    f"{middle / statistics.median(rates[1]):.2f} ×",
                )
            )
    show(["precision", "processes", "threads of each", "samples/s", "lowest", "highest", "against one process"], rows)


if __name__ == "__main__":
    main()
