"""How fast candidates are loaded on this machine (exercise 1 of the book's chapter 11.12)."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pandas as pd
import psutil
import torch

from luna_monai.data.cache import SeriesCache
from luna_monai.data.datasets import CandidateDataset, CandidateLoader
from luna_monai.data.precache import Precache
from luna_monai.errors import LunaError

_SAMPLE_S = 0.05  # between two looks at the memory


@dataclass(frozen=True)
class LoadingTimes:
    """What was measured.

    Attributes:
        table: a row for each setting: ``num_workers``, ``batch_size``, and in candidates a second, ``first`` (nothing
            cached: each CT is read, cut and written), ``cold`` (cached on disk, not in memory) and ``warm`` (in
            memory); ``memory_mb``, the most that this process and its workers held during the warm pass, without
            mapped files.
        candidates: how many candidates a pass reads.
        series: of how many series.
    """

    table: pd.DataFrame
    candidates: int
    series: int

    @property
    def best(self) -> pd.Series:
        """The setting to recommend: the fewest workers, then the smallest batch, within 10 % of the fastest one."""
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

    Caches of some series are made in a temporary folder beside the files of ``cache`` and removed afterwards, so that
    the disk is the one that training reads from, and nothing that is cached is lost.

    Args:
        candidates: the table that ``cache`` was made for.
        cache: tells the series, the transforms and the disk.
        num_workers: numbers of workers to try.
        batch_sizes: batch sizes to try.
        max_series: take the first so many series.

    Returns:
        The times.

    Raises:
        LunaError: when the cache has no folder, or the disk is too small.
    """
    if cache.cache_dir is None:
        raise LunaError("cache_dir is null; the loader is timed with a cache, on the disk that cache_dir names")
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
                # Opened anew, or its pages would stay in use and in memory.
                dataset = CandidateDataset(part, SeriesCache(items, cache.transform, folder))
                _drop_from_memory(Path(folder))
                cold, _ = _pass(dataset, batch_size, workers)
                warm, memory = _pass(dataset, batch_size, workers)
                measured.append((workers, batch_size, first, cold, warm, memory / 1e6))
    columns = ["num_workers", "batch_size", "first", "cold", "warm", "memory_mb"]
    return LoadingTimes(pd.DataFrame(measured, columns=columns), len(part), len(items))


def _pass(dataset: CandidateDataset, batch_size: int, num_workers: int) -> tuple[float, float]:
    """Read all candidates once; return candidates a second, and the most memory held meanwhile, in bytes."""
    generator = torch.Generator().manual_seed(0)
    loader = CandidateLoader(dataset, num_workers, batch_size=batch_size, shuffle=True, generator=generator)
    with _PeakMemory() as peak:
        start = time.perf_counter()
        count = sum(len(batch["row"]) for batch in loader)
        seconds = time.perf_counter() - start
    return count / seconds, peak.bytes


def _drop_from_memory(folder: Path) -> None:
    """Ask the system to forget the files of a folder, so that the disk is read again."""
    if not hasattr(os, "posix_fadvise"):
        return  # macOS, Windows: the cold pass is a warm one there
    for path in folder.glob("*.pt"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _PeakMemory:
    """Watches the memory of this process and its children."""

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


def memory_in_use() -> float:
    """Tell what this process and its children hold, without mapped files, in bytes; shared memory counts once."""
    this = psutil.Process()
    return sum(map(_memory, [this, *this.children(recursive=True)]))


def _memory(process: psutil.Process) -> float:
    """Tell what a process holds without files that it has mapped, its share of what it shares, in bytes."""
    try:
        # https://www.kernel.org/doc/Documentation/ABI/testing/procfs-smaps_rollup
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines[1:])
        return sum(1024.0 * int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(process.memory_full_info().uss)
    except psutil.Error:
        return 0.0
