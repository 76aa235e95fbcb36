"""Speed of the loader on this machine (exercise 1 of the book's chapter 11.12).

    python benchmarks/loading.py --dataset-dir D [--num-workers 0,1,2] [--batch-size 32,128,256] [--output-dir O]

For several numbers of workers and batch sizes, it times passes through the loader with nothing cached, cached on disk,
and cached in memory, and measures the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from memory import memory_in_use

from luna_monai.data.cache import SeriesCache
from luna_monai.data.datasets import CandidateDataset, CandidateLoader
from luna_monai.data.precache import Precache
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.workflow import config_files, given_options, load_workflow

_SAMPLE_S = 0.05  # interval between two memory samples


@dataclass(frozen=True)
class LoadingTimes:
    """Results of the measurement.

    Attributes:
        table: a row for each setting: ``num_workers``; ``batch_size``; in candidates per second, ``first`` (nothing
            cached: each CT is read, cropped and written), ``cold`` (cached on disk, not in memory) and ``warm`` (in
            memory); ``memory_mb``, the peak memory of this process and its workers in the warm pass, without mapped
            files.
        candidates: number of candidates per pass.
        series: number of series of these candidates.
    """

    table: pd.DataFrame
    candidates: int
    series: int

    @property
    def best(self) -> pd.Series:
        """The recommended setting: fewest workers, then smallest batch, within 10 % of the fastest setting."""
        near = self.table[self.table["warm"] >= 0.9 * self.table["warm"].max()]
        return near.sort_values(["num_workers", "batch_size"]).iloc[0]


def time_loading(
    candidates: pd.DataFrame,
    cache: SeriesCache,
    *,
    num_workers: Sequence[int],
    batch_sizes: Sequence[int],
    max_series: int,
) -> LoadingTimes:
    """Time a pass through the loader for several numbers of workers and batch sizes, in random order.

    The caches are written to a temporary folder inside the folder of ``cache`` and removed afterwards. So they are on
    the disk that training reads from, and existing cache files are kept.

    Args:
        candidates: the table of ``cache``.
        cache: defines the series, the transforms and the disk.
        num_workers: numbers of workers to try.
        batch_sizes: batch sizes to try.
        max_series: number of series to use; the first ones are used.

    Returns:
        The times.

    Raises:
        LunaError: if the cache has no folder, or the disk is too small.
    """
    if cache.cache_dir is None:
        raise LunaError("cache_dir is null; set it to a folder: the loader is timed with a cache")
    items = list(cache.data[:max_series])
    rows = sorted(int(row) for item in items for row in item["row"])
    part = candidates.loc[rows]
    measured = []
    for workers in num_workers:
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=cache.cache_dir) as folder:
            small = SeriesCache(items, cache.transform, folder)
            start = time.perf_counter()
            Precache(small, workers).run()
            first = len(part) / (time.perf_counter() - start)
            for batch_size in batch_sizes:
                # A new object, because mapped pages would stay in memory.
                dataset = CandidateDataset(part, SeriesCache(items, cache.transform, folder))
                _drop_from_memory(Path(folder))
                cold, _ = _pass(dataset, batch_size, workers)
                warm, memory = _pass(dataset, batch_size, workers)
                measured.append((workers, batch_size, first, cold, warm, memory / 1e6))
    columns = ["num_workers", "batch_size", "first", "cold", "warm", "memory_mb"]
    return LoadingTimes(pd.DataFrame(measured, columns=columns), len(part), len(items))


def _pass(dataset: CandidateDataset, batch_size: int, num_workers: int) -> tuple[float, float]:
    """Read all candidates once; return candidates per second, and the peak memory in bytes."""
    generator = torch.Generator().manual_seed(0)
    loader = CandidateLoader(dataset, num_workers, batch_size=batch_size, shuffle=True, generator=generator)
    with _PeakMemory() as peak:
        start = time.perf_counter()
        count = sum(len(batch["row"]) for batch in loader)
        seconds = time.perf_counter() - start
    return count / seconds, peak.bytes


def _drop_from_memory(folder: Path) -> None:
    """Drop the files of a folder from the page cache, so that they are read from disk again."""
    if not hasattr(os, "posix_fadvise"):
        return  # not available on macOS and Windows, where the cold pass is warm
    for path in folder.glob("*.pt"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _PeakMemory:
    """Samples the memory of this process and its children."""

    def __init__(self) -> None:
        self.bytes = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, memory_in_use())
            if self._ended.wait(_SAMPLE_S):
                return


def sentence(times: LoadingTimes) -> str:
    """Describe the best setting on this machine."""
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
    """Return the times and a description of the machine for ``json.dumps``."""
    return {
        "settings": json.loads(times.table.to_json(orient="records")),
        "best": json.loads(times.best.to_json()),
        "sentence": sentence(times),
        "candidates": times.candidates,
        "series": times.series,
        "machine": {"platform": platform.platform(), "processors": os.cpu_count()},
    }


def plot(times: LoadingTimes, path: Path) -> None:
    """Draw the rates and the memory of all settings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    rate, memory = figure.subplots(1, 2)
    names = [f"{row.num_workers} / {row.batch_size}" for row in times.table.itertuples()]
    for column, label in (("warm", "cached, in memory"), ("cold", "cached, on disk"), ("first", "not cached")):
        rate.plot(names, times.table[column], marker="o", label=label)
    rate.set(yscale="log", ylabel="candidates/s", xlabel="workers / batch size", title="One pass through the loader")
    rate.legend()
    memory.bar(names, times.table["memory_mb"])
    memory.set(ylabel="MB", xlabel="workers / batch size", title="Peak memory, all processes")
    for axes in (rate, memory):
        axes.tick_params(axis="x", labelrotation=60)
    figure.savefig(path, dpi=120)


def parse_numbers(text: str) -> list[int]:
    """Turn ``0,1,2`` into ``[0, 1, 2]``."""
    return list(dict.fromkeys(map(int, text.split(","))))


def main() -> int:
    """Measure, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], help="as in 'luna-monai train'")
    parser.add_argument("--dataset-dir", help="LUNA16 dataset folder")
    parser.add_argument("--cache-dir", help="folder of the cache")
    parser.add_argument("--output-dir", type=Path, help="folder for loading.csv, .json and .png")
    parser.add_argument("--num-workers", type=parse_numbers, default=[0, 1, 2], help="numbers of workers to try")
    parser.add_argument("--batch-size", type=parse_numbers, default=[32, 128, 256], help="batch sizes to try")
    parser.add_argument("--max-series", type=int, default=20, help="number of series to read, about 90 MB each")
    arguments = parser.parse_args()
    options = {"dataset_dir": arguments.dataset_dir, "cache_dir": arguments.cache_dir}
    with unwrapped_luna_errors():
        config = load_workflow("precache", config_files(arguments.config), given_options(options)).parser
        times = time_loading(
            config.get_parsed_content("candidates"),
            config.get_parsed_content("cache"),
            num_workers=arguments.num_workers,
            batch_sizes=arguments.batch_size,
            max_series=arguments.max_series,
        )
    print(times.table.round().astype(int).to_string(index=False))
    print(sentence(times))
    if arguments.output_dir is not None:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        times.table.to_csv(arguments.output_dir / "loading.csv", index=False)
        (arguments.output_dir / "loading.json").write_text(json.dumps(to_dict(times), indent=4))
        plot(times, arguments.output_dir / "loading.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
