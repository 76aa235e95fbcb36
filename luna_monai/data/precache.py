"""Filling the cache ahead of training."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import build_series, cut_series, save
from luna_monai.data.candidates import subset_of
from luna_monai.data.inventory import explain_missing, is_complete, read_manifest, write_manifest
from luna_monai.errors import LunaError
from luna_monai.files import readable_size, remove_abandoned

logger = logging.getLogger(__name__)

_MANY = 5000  # candidates of one series that are worth a line of the log


def available_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class PrecachePlan:
    """What is to be done to fill a cache.

    Attributes:
        series: numbers of the series still to do.
        total_series: number of all series, done or not, in the chosen subsets and shard.
        candidates: candidates of the series still to do.
        bytes_needed: size of their files.
        bytes_free: free space of the disk.
        worker_bytes: the most memory that one worker needs beside its libraries: a CT and its candidates.
    """

    series: list[int]
    total_series: int
    candidates: int
    bytes_needed: int
    bytes_free: int
    worker_bytes: int


class Precache:
    """Cut the candidates of all series that the cache does not hold yet.

    Every series is one file, written completely or not at all, so this may be interrupted at any moment, run twice at
    once, or divided among machines that share the folder: what is there is not done again.

    Args:
        cache: the cache to fill.
        num_workers: processes; each holds one CT and its candidates at a time. 0 works in this process.
        subsets: LUNA16 subsets to do; all when None.
        shard: ``(k, n)``: do only every n-th of these series, from the k-th on, counted from 0.
        progress: wraps the iterable of finished series to show how far it is, as
            ``progress(iterable, description, total)``; nothing is shown when None.
        wait: called when the shard is done, to wait for other processes that do the other ones.

    Raises:
        LunaError: when an argument is out of range, or no scan is in the subsets.
    """

    def __init__(
        self,
        cache: SeriesCache,
        num_workers: int = 0,
        subsets: Sequence[int] | None = None,
        shard: Sequence[int] = (0, 1),
        progress: Callable[[Iterable[Any], str, int], Iterator[Any]] | None = None,
        wait: Callable[[], None] | None = None,
    ) -> None:
        if len(shard) != 2 or not 0 <= shard[0] < shard[1]:
            raise LunaError(f"shard {tuple(shard)}: the first number counts from 0 to one below the second")
        if num_workers < 0:
            raise LunaError(f"{num_workers} pre-cache workers: 0 or more are possible")
        self.cache = cache
        self.num_workers = num_workers
        self.shard = tuple(shard)
        self.progress = progress
        self.wait = wait
        chosen = list(range(len(cache.data)))
        if subsets is not None:
            subset_of_series = [subset_of(item["image"].path) for item in cache.data]
            absent = sorted(set(subsets) - set(subset_of_series))
            if absent:
                raise LunaError(
                    f"subsets {', '.join(map(str, absent[:10]))}: no scans with candidates there; there are some in "
                    f"{', '.join(map(str, sorted(set(subset_of_series))))}"
                )
            chosen = [index for index in chosen if subset_of_series[index] in subsets]
        self.series = chosen[self.shard[0] :: self.shard[1]]

    def plan(self) -> PrecachePlan:
        """Find out what is there and what is to do.

        Raises:
            LunaError: when the cache has no folder.
        """
        folder = self._folder()
        missing = set(self.cache.missing())
        series = [index for index in self.series if index in missing]
        return PrecachePlan(
            series=series,
            total_series=len(self.series),
            candidates=sum(self._count(index) for index in series),
            bytes_needed=self.cache.bytes_needed(series),
            bytes_free=shutil.disk_usage(folder).free,
            worker_bytes=max(map(self._worker_bytes, series), default=0),
        )

    def show_plan(self) -> PrecachePlan:
        """Log what is there, what is to do and the time it will take by the first series; nothing written stays.

        Returns:
            The plan.

        Raises:
            LunaError: as :meth:`run`.
        """
        plan = self._checked_plan(self._folder())
        if plan.series:
            seconds = self._rehearse(plan.series[0])
            logger.info("cache: %s, by the first series", self._expected(plan, plan.series[0], seconds))
        return plan

    def run(self) -> int:
        """Fill the cache.

        Returns:
            The number of series that were cut.

        Raises:
            LunaError: when the folder cannot be written, the disk cannot hold the cache, or a CT cannot be read.
        """
        folder = self.cache.cache_dir
        if folder is None:
            logger.info("cache: none (cache_dir is null); candidates are cut from the CTs as they are needed")
            return 0
        remove_abandoned(folder)
        plan = self._checked_plan(folder)
        try:
            if plan.series:
                self._build(plan)
        finally:
            remove_abandoned(folder)
            _refresh_manifest(folder)
        if self.wait is not None:
            self.wait()
        return len(plan.series)

    def _folder(self) -> Path:
        if self.cache.cache_dir is None:
            raise LunaError("cache_dir is null: candidates are cut when they are needed, there is nothing to cache")
        return self.cache.cache_dir

    def _checked_plan(self, folder: Path) -> PrecachePlan:
        plan = self.plan()
        done = plan.total_series - len(plan.series)
        part = "" if self.shard[1] == 1 else f" of shard {self.shard[0] + 1}/{self.shard[1]}"
        logger.info("cache: %s holds %d of %d series%s", folder, done, plan.total_series, part)
        if not plan.series:
            return plan
        for line in explain_missing(self.cache, plan.series):
            logger.info("cache: %s", line)
        workers = min(self.num_workers, len(plan.series))
        logger.info(
            "cache: %d series to cut: %s candidates, %s; %s free; %d workers of at most %s",
            len(plan.series),
            f"{plan.candidates:,}",
            readable_size(plan.bytes_needed),
            readable_size(plan.bytes_free),
            workers,
            readable_size(plan.worker_bytes),
        )
        for index in plan.series:
            if self._count(index) > _MANY:
                item, size = self.cache.data[index], readable_size(self.cache.bytes_needed([index]))
                logger.info("cache: %s alone has %s candidates, %s", item["seriesuid"], self._count(index), size)
        if not os.access(folder, os.W_OK):
            raise LunaError(
                f"{folder}: {len(plan.series)} of {plan.total_series} series are missing and the folder cannot be "
                "written; fill it from where it can, or choose another cache_dir"
            )
        if plan.bytes_needed > plan.bytes_free:
            raise LunaError(
                f"{folder}: the cache needs {readable_size(plan.bytes_needed)}, the disk has "
                f"{readable_size(plan.bytes_free)} free; choose another cache_dir, fewer subsets, or cache_dir: null"
            )
        available = psutil.virtual_memory().available
        if max(workers, 1) * plan.worker_bytes > available:
            raise LunaError(
                f"{max(workers, 1)} pre-cache workers need {readable_size(max(workers, 1) * plan.worker_bytes)} of "
                f"memory, {readable_size(available)} are available; use {available // plan.worker_bytes} at most"
            )
        return plan

    def _build(self, plan: PrecachePlan) -> None:
        start = time.perf_counter()
        done = 0
        finished = self._with_first_estimate(self._finished(plan), plan)
        if self.progress is not None:
            finished = self.progress(finished, "cache", len(plan.series))
        try:
            for _ in finished:
                done += 1
        except BrokenProcessPool:
            raise LunaError(
                f"{self.cache.cache_dir}: a worker was killed, most likely because memory ran out; use fewer workers "
                f"than {self.num_workers}, each needs up to {readable_size(plan.worker_bytes)} beside its libraries"
            ) from None
        finally:
            if done < len(plan.series):
                logger.info("cache: stopped after %d of %d series; run it again to go on", done, len(plan.series))
        seconds = time.perf_counter() - start
        logger.info(
            "cache: %s candidates of %d series in %s, %s candidates/s",
            f"{plan.candidates:,}",
            len(plan.series),
            timedelta(seconds=round(seconds)),
            f"{plan.candidates / seconds:,.0f}",
        )

    def _finished(self, plan: PrecachePlan) -> Iterator[int]:
        """Build the series and yield the number of each once its file is there."""
        jobs = {index: self.cache.job(index) for index in plan.series}
        if self.num_workers == 0:
            for index, job in jobs.items():
                build_series(*job)
                yield index
            return
        # Forked workers start at once; spawned ones import torch and MONAI first, each.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(min(self.num_workers, len(jobs)), context, _start_worker)
        try:
            futures = {pool.submit(build_series, *job): index for index, job in jobs.items()}
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            # After an error, and after Ctrl-C, each worker completes what it writes.
            pool.shutdown(cancel_futures=True)

    def _with_first_estimate(self, finished: Iterable[int], plan: PrecachePlan) -> Iterator[int]:
        start = time.perf_counter()
        for number, index in enumerate(finished):
            if number == 0 and len(plan.series) > 1:
                expected = self._expected(plan, index, time.perf_counter() - start)
                logger.info("cache: %s, by the first series", expected)
            yield index

    def _expected(self, plan: PrecachePlan, index: int, seconds: float) -> str:
        parallel = max(min(self.num_workers, len(plan.series)), 1)
        expected = seconds * plan.candidates / self._count(index) / parallel
        return f"about {timedelta(seconds=round(expected))} for {len(plan.series)} series"

    def _rehearse(self, index: int) -> float:
        start = time.perf_counter()
        made = cut_series(*self.cache.job(index)[1:])
        try:
            with tempfile.TemporaryFile(dir=self._folder()) as file:
                save(file, **made)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LunaError(
                f"{self._folder()}: cannot be written ({error.strerror}); choose another cache_dir"
            ) from None
        return time.perf_counter() - start

    def _count(self, index: int) -> int:
        return len(self.cache.data[index]["center_xyz"])

    def _worker_bytes(self, index: int) -> int:
        header = self.cache.data[index]["image"]
        return (0 if header.is_mapped else header.nbytes) + self.cache.bytes_needed([index])


def _start_worker() -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _refresh_manifest(folder: Path) -> None:
    if is_complete(folder, read_manifest(folder)):
        return
    try:
        write_manifest(folder)
    except LunaError as error:  # a full or read-only disk; the manifest can be made at any other time
        logger.info("cache: no manifest: %s", error)
