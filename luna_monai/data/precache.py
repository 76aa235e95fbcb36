"""Filling of the cache before training."""

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import build_series
from luna_monai.data.candidates import subset_of
from luna_monai.errors import LunaError
from luna_monai.files import readable_size, remove_abandoned
from luna_monai.progress import enumerate_with_estimate

logger = logging.getLogger(__name__)

_LOG_INTERVAL_S = 30  # progress is logged at least this often


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(eq=False)
class Precache:
    """Crop the candidates of all series that are not in the cache yet.

    Each series is one file, which is written atomically. The process can be interrupted at any time, run several times
    in parallel, and be divided among machines that share the folder. Existing files are not built again.

    Args:
        cache: the cache to fill.
        num_workers: number of processes; each holds one CT and its candidates in memory. 0 works in this process.
        subsets: LUNA16 subsets to process; None for all.
        shard: ``(k, n)``: process only every n-th of these series, starting with the k-th, counted from 0.
        wait: called when the shard is done, to wait for other processes that work on other shards.

    Raises:
        LunaError: when the shard is out of range, or a subset contains no scan.
    """

    cache: SeriesCache
    num_workers: int = 0
    subsets: Sequence[int] | None = None
    shard: Sequence[int] = (0, 1)
    wait: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        cache, subsets, shard = self.cache, self.subsets, self.shard
        if not 0 <= shard[0] < shard[1]:
            raise LunaError(f"shard {tuple(shard)}: the first number must be at least 0 and below the second")
        subset_of_series = [subset_of(item["image"].path) for item in cache.data]
        chosen = [index for index, subset in enumerate(subset_of_series) if subsets is None or subset in subsets]
        if absent := sorted(set(subsets or ()) - set(subset_of_series)):
            wrong, right = (", ".join(map(str, each)) for each in (absent[:10], sorted(set(subset_of_series))))
            raise LunaError(f"subsets {wrong}: no scans with candidates in them; choose from {right}")
        self.series = chosen[shard[0] :: shard[1]]

    def missing(self) -> list[int]:
        """List the chosen series that are not in the cache yet, as indices of the cache."""
        missing = set(self.cache.missing())
        return [index for index in self.series if index in missing]

    def worker_bytes(self, series: Iterable[int]) -> int:
        """Estimate the memory of one worker in bytes, without its libraries: the largest CT and its candidates."""
        headers = [(index, self.cache.data[index]["image"]) for index in series]
        return max(self.cache.bytes_needed([i]) + (0 if header.is_mapped else header.nbytes) for i, header in headers)

    def show_plan(self) -> list[int]:
        """Log which series are in the cache and which are missing, and check that disk and memory are sufficient.

        Returns:
            The missing series, as indices of the cache.

        Raises:
            LunaError: when the cache has no folder, or disk or memory are too small.
        """
        folder, series, total = self.cache.cache_dir, self.missing(), len(self.series)
        if folder is None:
            raise LunaError("cache_dir is null, so there is no cache to fill; set cache_dir to a folder")
        part = "" if self.shard[1] == 1 else f" of shard {self.shard[0] + 1}/{self.shard[1]}"
        logger.info("cache: %s holds %d of %d series%s", folder, total - len(series), total, part)
        if not series:
            return series
        needed, free = self.cache.bytes_needed(series), shutil.disk_usage(folder).free
        workers = max(min(self.num_workers, len(series)), 1)
        memory, available = workers * self.worker_bytes(series), psutil.virtual_memory().available
        size, room = readable_size(needed), readable_size(free)
        candidates = sum(len(self.cache.data[index]["center_xyz"]) for index in series)
        logger.info("cache: %d series to add: %s candidates, %s; %s free", len(series), f"{candidates:,}", size, room)
        if needed > free:
            raise LunaError(f"{folder}: the cache needs {size}, the disk has {room} free; choose another cache_dir")
        if memory > available:
            found = f"{readable_size(available)} are available; use at most {workers * available // memory}"
            raise LunaError(f"{workers} pre-cache workers need {readable_size(memory)} of memory, {found}")
        return series

    def run(self) -> int:
        """Fill the cache.

        Returns:
            The number of series that were added.

        Raises:
            LunaError: when the folder cannot be written, the disk cannot hold the cache, or a CT cannot be read.
        """
        folder = self.cache.cache_dir
        if folder is None:
            logger.info("cache: none (cache_dir is null); candidates are cropped from the CTs when they are needed")
            return 0
        remove_abandoned(folder)
        series = self.show_plan()
        try:
            for _ in enumerate_with_estimate(self._build(series), "cache", len(series)) if series else ():
                pass
        except BrokenProcessPool:
            advice = f"if memory ran out, use fewer than {self.num_workers} workers"
            raise LunaError(f"{folder}: a worker was killed; {advice}") from None
        finally:
            remove_abandoned(folder)
        if self.wait is not None:
            self.wait()
        return len(series)

    def _build(self, series: Sequence[int]) -> Iterator[Future]:
        """Build the series and yield each when its file is written; log progress if no series finishes for long."""
        start = time.perf_counter()
        pool: Executor = ThreadPoolExecutor(1)
        if self.num_workers > 0:
            # Forked workers start at once; each spawned worker imports torch and MONAI first.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
            pool = ProcessPoolExecutor(min(self.num_workers, len(series)), context, _start_worker)
        try:
            pending = {pool.submit(build_series, *self.cache.job(index)) for index in series}
            while pending:
                finished, pending = wait(pending, _LOG_INTERVAL_S, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                    yield future
                if not finished:
                    elapsed = timedelta(seconds=round(time.perf_counter() - start))
                    logger.info("cache: %d series left after %s", len(pending), elapsed)
        finally:
            # After an error or Ctrl-C, each worker completes the file that it is writing.
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)  # OpenMP threads do not survive a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
