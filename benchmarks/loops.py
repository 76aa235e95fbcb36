"""The bundle's training and validation compared with the book's plain loop (``book_loop.py``) on the same candidates.

    python benchmarks/loops.py train --dataset-dir D [--samples N] [--repeats N] [key=value ...]
    python benchmarks/loops.py predict --dataset-dir D

Prints samples per second, with loader and metrics included, and the upper limits of the device. Missing series are
cropped into the cache first. The loops run in turn.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from book_loop import BookLoop
from ignite.engine import Engine, Events
from memory import memory_in_use
from monai.bundle import ConfigWorkflow
from monai.engines import Trainer
from throughput import ThroughputHandler

from benchmarks.speed import Roofline, roofline, time_in_turn
from luna_monai.errors import unwrapped_luna_errors
from luna_monai.workflow import config_files, given_options, load_workflow, parse_override

BOOK = "the book's loop"
OURS = "luna-monai"


@dataclass(frozen=True)
class LoopTimes:
    """Results of the measurement.

    Attributes:
        what: ``"training"`` or ``"predicting"``.
        samples: candidates per round.
        batch_size: of both loops.
        seconds: of each round, by loop.
        precision: of the bundle's loop, ``float32`` or ``bfloat16``.
        device: of both loops.
        data_wait: time that the bundle's loop waited for data, in percent.
        memory_mb: memory of the process at the end.
        roofline: what the bundle's loop needs, and what the device can do.
    """

    what: str
    samples: int
    batch_size: int
    seconds: dict[str, list[float]]
    precision: str
    device: str
    data_wait: float
    memory_mb: float
    roofline: Roofline
    measured: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    def rate(self, loop: str) -> float:
        """Return the median of samples per second."""
        return self.samples / statistics.median(self.seconds[loop])

    @property
    def ratio(self) -> float:
        """The median over the rounds of the book's time divided by the bundle's time in the same round."""
        return statistics.median(book / ours for book, ours in zip(self.seconds[BOOK], self.seconds[OURS], strict=True))

    def lines(self) -> list[str]:
        """Describe the results."""
        rounds = len(self.seconds[OURS])
        lines = [
            f"{self.what} on {self.device}, batches of {self.batch_size}, {self.samples} candidates per round, "
            f"median of {rounds} (lowest to highest):"
        ]
        for loop, seconds in self.seconds.items():
            name = f"{loop}, {self.precision}" if loop == OURS else f"{loop}, float32"
            lowest, highest = self.samples / max(seconds), self.samples / min(seconds)
            lines.append(f"{name:26} {self.rate(loop):9,.1f} samples/s ({lowest:,.1f} to {highest:,.1f})")
        lines.append(
            f"{self.ratio:.2f} times the book's loop; {self.data_wait:.1f} % of the time waiting for data; "
            f"{self.memory_mb:,.0f} MB of memory"
        )
        return lines + self.roofline.lines(self.rate(OURS))

    def to_dict(self) -> dict[str, Any]:
        """Return all results for ``json.dumps``."""
        return {
            "what": self.what,
            "measured": self.measured,
            "machine": {
                "platform": platform.platform(),
                "processors": psutil.cpu_count(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "device": self.device,
            },
            "precision": self.precision,
            "batch_size": self.batch_size,
            "samples": self.samples,
            "seconds": self.seconds,
            "samples_per_second": {loop: self.rate(loop) for loop in self.seconds},
            "ratio": self.ratio,
            "data_wait": self.data_wait,
            "memory_mb": self.memory_mb,
            "roofline": self.roofline.to_dict(),
        }


def time_training(
    files: Sequence[str], overrides: Mapping[str, Any], samples: int, repeats: int, book_workers: int | None = None
) -> LoopTimes:
    """Time the bundle's training, with loader, metrics and handlers, in turn with the book's.

    Args:
        files: the configuration.
        overrides: values for keys of it.
        samples: candidates per round; fewer if the configuration's sampler draws fewer.
        repeats: rounds.
        book_workers: processes of the book's loader; None: the number of threads of the bundle's loader.

    Raises:
        LunaError: if the data or the configuration is invalid.
    """
    with tempfile.TemporaryDirectory() as folder, unwrapped_luna_errors():
        length = {"max_epochs": repeats + 2, "val_interval": repeats + 3, "samples_per_epoch": samples}
        overrides = {**overrides, **length, "resume": False, "output_dir": folder}
        workflow = load_workflow("training", files, overrides)
        get = workflow.parser.get_parsed_content
        workflow.initialize()
        trainer, batch_size, loader = get("train#trainer"), get("batch_size"), get("train#dataloader")
        trainer.state.epoch_length = min(-(-samples // batch_size), len(loader))
        samples = min(samples, len(loader.sampler))
        workers = get("num_workers") if book_workers is None else book_workers
        book = BookLoop(get("train#dataset"), samples, batch_size, workers, get("device"))
        throughput = _watch(trainer)

        get("precacher").run()
        with quiet(), epoch_by_epoch(trainer) as train:
            seconds = time_in_turn({BOOK: book.train, OURS: train}, repeats)
        get("run_state").close()
        return _times(workflow, "train", seconds, samples, batch_size, throughput)


def time_predicting(files: Sequence[str], overrides: Mapping[str, Any], samples: int, repeats: int) -> LoopTimes:
    """Time the bundle's validation, with loader and metrics, in turn with the book's.

    Args:
        files: the configuration.
        overrides: values for keys of it.
        samples: candidates per round, rounded up to whole batches, at most those of the validation part.
        repeats: rounds.

    Raises:
        LunaError: if the data or the configuration is invalid.
    """
    with unwrapped_luna_errors():
        workflow = load_workflow("training", files, {"validate#handlers": [], **overrides})
        get = workflow.parser.get_parsed_content
        workflow.initialize()
        evaluator, batch_size = get("validate#evaluator"), get("val_batch_size")
        dataset = get("validate#dataset")
        batches = min(-(-samples // batch_size), len(get("validate#dataloader")))
        samples = min(batches * batch_size, len(dataset))
        evaluator.state.epoch_length = batches
        book = BookLoop(dataset, samples, batch_size, get("num_workers"), get("device"))
        throughput = _watch(evaluator)
        get("precacher").run()
        with quiet():
            seconds = time_in_turn({BOOK: book.validate, OURS: evaluator.run}, repeats)
        return _times(workflow, "validate", seconds, samples, batch_size, throughput)


def _watch(engine: Engine) -> ThroughputHandler:
    throughput = ThroughputHandler()
    throughput.attach(engine)
    return throughput


def _times(
    workflow: ConfigWorkflow,
    part: str,
    seconds: dict[str, list[float]],
    samples: int,
    batch_size: int,
    throughput: ThroughputHandler,
) -> LoopTimes:
    get = workflow.parser.get_parsed_content
    device = torch.device(get("device"))
    inferer = get(f"{part}#inferer")
    dtype = getattr(inferer, "dtype", None) or torch.float32
    return LoopTimes(
        what="training" if part == "train" else "predicting",
        samples=samples,
        batch_size=batch_size,
        seconds=seconds,
        precision=str(dtype).removeprefix("torch."),
        device=torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads",
        data_wait=statistics.median(epoch["data_wait"] for epoch in throughput.epochs[1:]),
        memory_mb=memory_in_use() / 1e6,
        roofline=_roofline(workflow, part, device, dtype),
    )


def _roofline(workflow: ConfigWorkflow, part: str, device: torch.device, dtype: torch.dtype) -> Roofline:
    get = workflow.parser.get_parsed_content
    network = get("network").train(part == "train")
    batch = next(iter(get(f"{part}#dataloader")))
    image, label = get(f"{part}#prepare_batch")(batch, device)

    def step() -> None:
        with torch.set_grad_enabled(part == "train"):
            loss = get("loss_function")(get(f"{part}#inferer")(image, network), label).mean()
            if part == "train":
                get("optimizer").zero_grad(set_to_none=True)
                loss.backward()

    return roofline(step, len(label), device, dtype)


@contextmanager
def epoch_by_epoch(trainer: Trainer) -> Iterator[Callable[[], object]]:
    """Run a training epoch by epoch, with other work in between.

    Args:
        trainer: its ``max_epochs`` must exceed the number of epochs to run.

    Yields:
        A function that runs the next epoch with all its handlers.
    """
    trainer.add_event_handler(Events.EPOCH_COMPLETED, Engine.interrupt)
    try:
        yield trainer.run
    finally:
        trainer.terminate(skip_completed=True)
        trainer.run()


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress log lines below warnings."""
    loggers = [logging.getLogger(name) for name in ("luna_monai.training", "luna_monai.data", "luna_monai.scans")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def main() -> int:
    """Measure, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--config", action="append", default=[], help="as in 'luna-monai train'")
    parser.add_argument("--dataset-dir", help="LUNA16 dataset folder")
    parser.add_argument("--cache-dir", help="folder of the cache")
    parser.add_argument("--output-dir", type=Path, help="folder for loops_WHAT.json")
    parser.add_argument("--samples", type=int, help="candidates per round (default: 256, with a GPU 16384)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after one warm-up round")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in 'luna-monai train'")
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    options = {"dataset_dir": arguments.dataset_dir, "cache_dir": arguments.cache_dir}
    given = given_options(options) | dict(map(parse_override, arguments.overrides))
    # With few samples on a GPU, the end of an epoch (metrics and files) would take longer than its iterations.
    samples = arguments.samples or (16_384 if torch.cuda.is_available() else 256)
    measure = time_training if arguments.what == "train" else time_predicting
    times = measure(config_files(arguments.config), given, samples, arguments.repeats)
    print("\n".join(times.lines()))
    if arguments.output_dir is not None:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        path = arguments.output_dir / f"loops_{arguments.what}.json"
        path.write_text(json.dumps(times.to_dict(), indent=4))
    return 0


if __name__ == "__main__":
    sys.exit(main())
