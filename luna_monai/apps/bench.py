"""``luna-monai bench``: how fast this machine is.

``bench data`` is exercise 1 of the book's chapter 11.12; ``train`` and ``predict`` compare with the book's plain loop.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai.apps.base import App, run_app
from luna_monai.apps.workflow import config_files, given_options, load_workflow, parse_override
from luna_monai.errors import LunaError, unwrapped_luna_errors

if TYPE_CHECKING:
    from luna_monai.data.timing import LoadingTimes

logger = logging.getLogger(__name__)


class LunaBenchApp(App):
    """Measure how fast this machine does parts of the work.

    Args:
        sys_argv: arguments; see ``luna-monai bench --help``.
    """

    name = "bench"
    intermixed = True  # keys of the configuration may stand anywhere
    description = (
        "data: one pass through the loader for several numbers of workers and batch sizes: nothing cached, cached on "
        "disk, cached in memory; and the memory it takes. train, predict: samples per second of the configuration's "
        "training and validation, loader and metrics included, in turn with the book's plain loop on the same "
        "candidates, and what the device could do at best; what is not cached is cut first."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("what", choices=("data", "train", "predict"), help="what to measure")
        parser.add_argument("--config", action="append", default=[], metavar="YAML", help="as of 'luna-monai train'")
        parser.add_argument("--dataset-dir", default=None, help="LUNA16 dataset folder (default: the configuration's)")
        parser.add_argument("--cache-dir", default=None, help="where to make caches (default: the configuration's)")
        parser.add_argument(
            "--output-dir", default=None, help="folder for bench_WHAT.json, and bench_data.csv and .png"
        )
        data = parser.add_argument_group("data")
        data.add_argument("--num-workers", default="0,1,2", metavar="N,N", help="numbers of workers to try")
        data.add_argument("--batch-size", default="32,128,256", metavar="N,N", help="batch sizes to try")
        data.add_argument("--max-series", type=int, default=20, help="read so many series, of about 90 MB each")
        loops = parser.add_argument_group("train, predict")
        loops.add_argument("--samples", type=int, help="candidates in each round (default: 256, with a GPU 16384)")
        loops.add_argument("--repeats", type=int, default=5, help="rounds, after one that warms up")
        loops.add_argument(
            "overrides", nargs="*", metavar="key=value", help="any key of the configuration, as precision=float32"
        )

    def main(self) -> int:
        """Measure, log the figures and write the files.

        Raises:
            LunaError: when the data, the configuration or an argument is bad, or the disk is too small.
        """
        arguments = self.cli_args
        for option in ("max_series", "samples", "repeats"):
            value = getattr(arguments, option)
            if value is not None and value < 1:
                raise LunaError(f"--{option.replace('_', '-')} {value}: at least 1")
        return self._data() if arguments.what == "data" else self._loop()

    def _loop(self) -> int:
        import torch

        from luna_monai.apps.bench_loops import LoopTimes, time_predicting, time_training
        from luna_monai.files import write_json

        arguments = self.cli_args
        options = {"dataset_dir": arguments.dataset_dir, "cache_dir": arguments.cache_dir}
        given = given_options(options) | dict(map(parse_override, arguments.overrides))
        # Of a few, a GPU would be through sooner than the end of an epoch, with its metrics and files, is done.
        samples = arguments.samples or (16_384 if torch.cuda.is_available() else 256)
        measure = time_training if arguments.what == "train" else time_predicting
        times: LoopTimes = measure(config_files(arguments.config), given, samples, arguments.repeats)
        for line in times.lines():
            logger.info("%s", line)
        if arguments.output_dir is not None:
            path = Path(arguments.output_dir) / f"bench_{arguments.what}.json"
            write_json(path, times.to_dict())
            logger.info("written: %s", path)
        return 0

    def _data(self) -> int:
        from luna_monai.data.timing import time_loading

        arguments = self.cli_args
        if arguments.overrides:
            raise LunaError(f"{arguments.overrides[0]}: 'bench data' takes options only, not keys of the configuration")
        workers = parse_numbers("--num-workers", arguments.num_workers, lowest=0)
        batch_sizes = parse_numbers("--batch-size", arguments.batch_size, lowest=1)
        options = {"dataset_dir": arguments.dataset_dir, "cache_dir": arguments.cache_dir}
        parser = load_workflow("precache", config_files(arguments.config), given_options(options)).parser
        with unwrapped_luna_errors():
            times = time_loading(
                parser.get_parsed_content("candidates"),
                parser.get_parsed_content("cache"),
                num_workers=workers,
                batch_sizes=batch_sizes,
                max_series=arguments.max_series,
            )
        for line in times.table.round().astype(int).to_string(index=False).splitlines():
            logger.info("%s", line)
        logger.info("%s", sentence(times))
        if arguments.output_dir is not None:
            self._write(times, Path(arguments.output_dir))
        return 0

    @staticmethod
    def _write(times: LoadingTimes, folder: Path) -> None:
        from luna_monai.files import write_bytes, write_json

        write_bytes(folder / "bench_data.csv", times.table.to_csv(index=False).encode())
        write_json(folder / "bench_data.json", to_dict(times))
        write_bytes(folder / "bench_data.png", plot(times))
        logger.info("written: %s", ", ".join(str(folder / f"bench_data.{suffix}") for suffix in ("csv", "json", "png")))


def parse_numbers(option: str, text: Any, lowest: int) -> list[int]:
    """Turn ``0,1,2`` into ``[0, 1, 2]``.

    Raises:
        LunaError: when it is not a list of whole numbers from ``lowest`` on.
    """
    try:
        numbers = [int(part) for part in str(text).split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < lowest:
        raise LunaError(f"{option} {text}: expected whole numbers from {lowest} on, separated by commas")
    return list(dict.fromkeys(numbers))


def sentence(times: LoadingTimes) -> str:
    """Say in words which setting is best on this machine."""
    best, table = times.best, times.table
    slowest = table.sort_values("warm").iloc[0]
    return (
        f"Best on this machine: num_workers {best['num_workers']:.0f} with batch_size {best['batch_size']:.0f}, "
        f"{best['warm']:,.0f} candidates/s once the cache is in memory ({best['cold']:,.0f} from the disk, "
        f"{best['first']:,.0f} while the cache is filled), with {best['memory_mb']:,.0f} MB of memory; the slowest "
        f"setting, num_workers {slowest['num_workers']:.0f} with batch_size {slowest['batch_size']:.0f}, gives "
        f"{slowest['warm']:,.0f}."
    )


def to_dict(times: LoadingTimes) -> dict[str, Any]:
    """Turn the times, and what machine they are of, into what ``json.dumps`` takes."""
    return {
        "settings": json.loads(times.table.to_json(orient="records")),
        "best": json.loads(times.best.to_json()),
        "sentence": sentence(times),
        "candidates": times.candidates,
        "series": times.series,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Name the machine that figures are of."""
    return {"platform": platform.platform(), "processors": os.cpu_count()}


def plot(times: LoadingTimes) -> bytes:
    """Draw the rates and the memory of all settings.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    rate, memory = figure.subplots(1, 2)
    names = [f"{row.num_workers} / {row.batch_size}" for row in times.table.itertuples()]
    for column, label in (("warm", "cached, in memory"), ("cold", "cached, on disk"), ("first", "not cached")):
        rate.plot(names, times.table[column], marker="o", label=label)
    rate.set(yscale="log", ylabel="candidates/s", xlabel="workers / batch size", title="One pass through the loader")
    rate.legend()
    memory.bar(names, times.table["memory_mb"])
    memory.set(ylabel="MB", xlabel="workers / batch size", title="Most memory, all processes")
    for axes in (rate, memory):
        axes.tick_params(axis="x", labelrotation=60)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


if __name__ == "__main__":
    sys.exit(run_app(LunaBenchApp))
