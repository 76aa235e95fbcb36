"""Filling the cache ahead of training."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from luna_monai.data.cache import SeriesCache
from luna_monai.errors import LunaError, unwrapped_luna_errors

logger = logging.getLogger(__name__)

_ABANDONED_S = 3600  # a temporary file this old belongs to no running process


@dataclass(frozen=True)
class PrecachePlan:
    """What filling a cache means.

    Attributes:
        series: numbers of the series still to do.
        total_series: how many series the cache has in all.
        candidates: candidates of the series still to do.
        bytes_needed: what their files take.
        bytes_free: what the disk has.
        worker_bytes: the most memory one worker needs: a CT and its candidates.
    """

    series: list[int]
    total_series: int
    candidates: int
    bytes_needed: int
    bytes_free: int
    worker_bytes: int


class Precache:
    """Cut the candidates of all series that the cache does not hold yet.

    Every series is one file, written whole or not at all, so this may be interrupted at any moment, run twice at
    once, or divided among machines that share the folder: what is there is not done again.

    Args:
        cache: the cache to fill.
        num_workers: processes; each holds one CT at a time. 0 works in this process.
        shard: ``(k, n)``: do only every n-th series, from the k-th on, counted from 0.
        progress: wraps the iterable of finished series to show how far it is, as
            ``progress(iterable, description, total)``; nothing is shown when None.
    """

    def __init__(
        self,
        cache: SeriesCache,
        num_workers: int = 0,
        shard: tuple[int, int] = (0, 1),
        progress: Callable[[Iterable[Any], str, int], Iterator[Any]] | None = None,
    ) -> None:
        if not 0 <= shard[0] < shard[1]:
            raise LunaError(f"shard {shard[0]}/{shard[1]}: the first number counts from 0 to one below the second")
        self.cache = cache
        self.num_workers = num_workers
        self.shard = shard
        self.progress = progress

    def plan(self) -> PrecachePlan:
        """Look at what is there and what is to do.

        Raises:
            ValueError: when the cache has no folder.
        """
        if self.cache.cache_dir is None:
            raise ValueError("nothing to plan: there is no cache_dir")
        part, parts = self.shard
        series = [index for index in self.cache.missing() if index % parts == part]
        sizes = [len(self.cache.data[index]["center_xyz"]) for index in series]
        scans = [sum(file["bytes"] for file in self.cache.data[index]["files"]) for index in series]
        bytes_each = [self.cache.bytes_needed([index]) for index in series]
        return PrecachePlan(
            series=series,
            total_series=len(self.cache.data),
            candidates=sum(sizes),
            bytes_needed=sum(bytes_each),
            bytes_free=shutil.disk_usage(self.cache.cache_dir).free,
            worker_bytes=max((scan + cut for scan, cut in zip(scans, bytes_each, strict=True)), default=0),
        )

    def run(self) -> int:
        """Fill the cache.

        Returns:
            How many series were cut.

        Raises:
            LunaError: when the disk can't hold the cache, or a CT can't be read.
        """
        if self.cache.cache_dir is None:
            logger.info("cache: none (cache_dir is null); candidates are cut from the CTs as they are needed")
            return 0
        plan = self.plan()
        done = plan.total_series - len(plan.series)
        logger.info("cache: %s holds %d of %d series", self.cache.cache_dir, done, plan.total_series)
        if not plan.series:
            return 0
        logger.info(
            "cache: %d series to cut: %s candidates, %s; %s free; %d workers of at most %s",
            len(plan.series),
            f"{plan.candidates:,}",
            _size(plan.bytes_needed),
            _size(plan.bytes_free),
            self.num_workers,
            _size(plan.worker_bytes),
        )
        if plan.bytes_needed > plan.bytes_free:
            raise LunaError(
                f"{self.cache.cache_dir}: the cache needs {_size(plan.bytes_needed)}, the disk has "
                f"{_size(plan.bytes_free)} free; choose another cache_dir, fewer subsets, or cache_dir: null"
            )
        self._remove_abandoned(self.cache.cache_dir)
        self._build(plan)
        return len(plan.series)

    def _build(self, plan: PrecachePlan) -> None:
        start = time.perf_counter()
        self.cache.build(plan.series[0])
        elapsed = time.perf_counter() - start
        rest = plan.series[1:]
        if rest:
            share = 1 - len(self.cache.data[plan.series[0]]["center_xyz"]) / max(plan.candidates, 1)
            expected = elapsed * share / max(1 - share, 1e-9) / max(self.num_workers, 1)
            logger.info("cache: about %s to go, by the first series", timedelta(seconds=round(expected)))
        loader = DataLoader(
            _Builder(self.cache, rest),
            batch_size=None,
            num_workers=min(self.num_workers, len(rest)),
            # Of its own, or weights drawn afterwards would depend on whether the cache was there.
            generator=torch.Generator(),
        )
        finished: Iterable[Any] = loader
        if self.progress is not None:
            finished = self.progress(loader, "cache", len(rest))
        with unwrapped_luna_errors():
            for _ in finished:
                pass
        seconds = time.perf_counter() - start
        logger.info(
            "cache: %s candidates of %d series in %s, %s candidates/s",
            f"{plan.candidates:,}",
            len(plan.series),
            timedelta(seconds=round(seconds)),
            f"{plan.candidates / seconds:,.0f}",
        )

    @staticmethod
    def _remove_abandoned(folder: Path) -> None:
        for path in folder.glob(".*.tmp"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:  # its writer was alive after all
                continue


class _Builder(Dataset):
    """Builds one series for each item, so that a DataLoader's workers do the work."""

    def __init__(self, cache: SeriesCache, series: list[int]) -> None:
        self.cache = cache
        self.series = series

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, number: int) -> torch.Tensor:
        self.cache.build(self.series[number])
        return torch.tensor(self.series[number])


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
