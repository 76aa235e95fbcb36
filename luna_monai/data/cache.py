"""The cache of cut candidates: one file a series."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import PersistentDataset
from monai.transforms import RandomizableTrait, Transform

from luna_monai.data.cache_files import apply, build_series, hash_of, open_mapped, series_hashing, transform_hashing
from luna_monai.data.candidates import DatasetScans
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.files import file_name_of
from luna_monai.transforms import candidate_size

logger = logging.getLogger(__name__)


def series_items(candidates: pd.DataFrame, dataset_dir: str | Path | DatasetScans) -> list[dict[str, Any]]:
    """List the series of a candidate table as the items of a :class:`SeriesCache`.

    The cache is made of *all* candidates of a series, so that every split of them shares it: pass the whole table,
    not a part of it.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        dataset_dir: the LUNA16 dataset folder of the table.

    Returns:
        A dict for each series, in the order of their first candidates: ``seriesuid``; ``image``, the
        :class:`~luna_monai.scans.ScanHeader` of the CT; ``files``, path, size and time of modification of its files;
        ``changed_ns``, when one of them was last changed or replaced; ``center_xyz``, the world positions of the
        series' candidates, float64 (n, 3) in the order of the table; ``row``, their index in it.

    Raises:
        LunaError: when a series has no CT, or its voxel file is missing or too short.
    """
    scans = DatasetScans.of(dataset_dir)
    points = candidates[COORDINATES].to_numpy()
    items = []
    for seriesuid, rows in candidates.groupby("seriesuid", sort=False).indices.items():
        header = scans[str(seriesuid)]
        files = [(path.relative_to(scans.dataset_dir).as_posix(), path.stat()) for path in header.files]
        items.append(
            {
                "seriesuid": str(seriesuid),
                "image": header,
                "files": [(path, status.st_size, status.st_mtime_ns) for path, status in files],
                "changed_ns": max(status.st_ctime_ns for _, status in files),
                "center_xyz": points[rows],
                "row": candidates.index[rows].to_numpy(),
            }
        )
    return items


class SeriesCache(PersistentDataset):
    """All candidates of each series, cut once and kept on disk: a ``PersistentDataset`` whose items are series.

    A file holds ``image``, int16 (n, 1, 32, 48, 48) in HU, and ``center_irc``, int64 (n, 3), z,y,x. Its name holds the
    series, the hash of its CT's files and candidates, and the hash of the deterministic transforms with all their
    parameters: any change of the inputs changes the name, so stale files
    are never read. Files are mapped into memory, not loaded. They are written to a temporary name in the same folder,
    flushed to disk and renamed, so a file under its final name is complete.

    Args:
        data: items of :func:`series_items`.
        transform: deterministic transforms that turn an item into ``image`` and ``center_irc``; the first loads the
            CT.
        cache_dir: folder of the files; made when missing. None keeps nothing on disk: candidates are cut when they
            are read.

    Raises:
        LunaError: when the folder cannot be made, a transform is random, or none of them cuts.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Sequence[Callable] | Callable, cache_dir: str | Path | None
    ) -> None:
        try:
            super().__init__(data, transform, cache_dir, hash_func=series_hashing, hash_transform=transform_hashing)
        except (OSError, ValueError) as error:
            raise LunaError(f"{cache_dir}: cannot be used as cache folder ({error}); choose another") from None
        # Flattening makes a Compose, and that draws random seeds: once is enough.
        self.steps = steps = list(self.transform.flatten().transforms)
        if wrong := [
            step for step in self.steps if isinstance(step, RandomizableTrait) or not isinstance(step, Transform)
        ]:
            raise LunaError(f"{type(wrong[0]).__name__}: only MONAI's deterministic transforms can be cached")
        self.spatial_size = candidate_size(self.steps)
        ends = [f".{series_hashing(item).decode()}.{self.transform_hash}.pt" for item in data]
        self.names = [file_name_of(item["seriesuid"]) + end for item, end in zip(data, ends, strict=True)]
        self._open: dict[int, dict[str, Any]] = {}
        # Without a folder scans stay open; of those that take memory, up to 400 MB each, the last ones.
        all_mapped = all(item["image"].is_mapped for item in data)
        self._scan = lru_cache(None if all_mapped else 4)(lambda index: apply(steps[:1], data[index]))
        # Threads may come for the same file, and it must not be made twice at the same time.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker maps the files itself: pickling a mapped tensor would send its voxels.
        return type(self), (self.data, self.transform, self.cache_dir)

    @property
    def fingerprint(self) -> str:
        """Hash of all inputs of the voxels: scans, candidates and transforms, the series in any order."""
        return hash_of(*(name.encode() for name in sorted(self.names)))

    def job(self, index: int) -> tuple[Path, dict[str, Any], list[Callable]]:
        """Return the arguments of :func:`~luna_monai.data.cache_files.build_series` for series number ``index``."""
        return self.cache_dir / self.names[index], self.data[index], self.steps

    def missing(self) -> list[int]:
        """List the series that are not in the cache yet or were cut from an earlier CT, by their number in ``data``."""
        return [] if self.cache_dir is None else [i for i in range(len(self.data)) if not self._is_new(i)]

    def _is_new(self, index: int) -> bool:
        """Tell whether there is a file that was written after all files of its CT were last changed or replaced.

        A program can set a file's time of modification, but not the time of its last change (``st_ctime``), so a CT is
        cut again after its voxels were changed under the same size and time, and after it was copied or its permissions
        were changed. File systems without that time (FAT, exFAT, those of Windows) do not show it.
        """
        try:
            return bool((self.cache_dir / self.names[index]).stat().st_mtime_ns >= self.data[index]["changed_ns"])
        except FileNotFoundError:
            return False

    def bytes_needed(self, indices: Sequence[int]) -> int:
        """Estimate how many bytes the files of these series take: their voxels, and a little for each file."""
        per_candidate = 2 * int(np.prod(self.spatial_size))
        return sum(len(self.data[index]["center_xyz"]) * (per_candidate + 128) + 8192 for index in indices)

    def read(self, series: np.ndarray, position: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Read candidates, whole batches at once.

        Args:
            series: (n,) numbers of series in ``data``.
            position: (n,) the candidates' places among those of their series.

        Returns:
            ``image``, int16 (n, 1, 32, 48, 48) in HU, and ``center_irc``, int64 (n, 3), z,y,x.

        Raises:
            LunaError: when a series is in no cache and its CT cannot be read.
        """
        # NumPy asks for huge pages, torch does not: fresh memory for 256 candidates is four times as fast.
        batch = np.empty((len(series), 1, *self.spatial_size), dtype=np.int16)
        center_irc = np.empty((len(series), 3), dtype=np.int64)
        for index in np.unique(series).tolist():
            slots = np.flatnonzero(series == index)
            places = position[slots]
            if self.cache_dir is None:
                entry, places = self._cut(index, places), np.arange(len(slots))
            else:
                entry = self._entry(index)
            image = entry["image"].numpy()
            center_irc[slots] = entry["center_irc"].numpy()[places]
            for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
                batch[slot] = image[place]
        return torch.from_numpy(batch), torch.from_numpy(center_irc)

    def _transform(self, index: int) -> Any:
        # PersistentDataset looks an item up by its content alone; here its number finds it while it is open.
        return self._cut(index, slice(None)) if self.cache_dir is None else self._entry(index)

    def _entry(self, index: int) -> dict[str, Any]:
        """Return a mapped file, made first where it is missing."""
        path, entry = self.cache_dir / self.names[index], self._open.get(index)
        if entry is not None and not _is_shorter(path, entry["bytes"]):
            return entry
        with self._lock:
            if self._open.get(index) is entry:  # else another thread has made it
                entry = self._map(path) if self._is_new(index) else None
                if entry is None:
                    build_series(*self.job(index))
                    entry = self._map(path)  # its time does not count: the clocks of two disks may differ
                if entry is None:
                    raise LunaError(f"{path}: cannot be read although it was just written; check the disk")
                self._open[index] = entry
            return self._open[index]

    def _map(self, path: Path) -> dict[str, Any] | None:
        """Map a file, or return None when it is damaged."""
        try:
            return {**open_mapped(path), "bytes": path.stat().st_size}
        except (OSError, ValueError) as error:
            logger.warning("%s: damaged (%s); it is cut again from the CT", path, error)
            return None

    def _cut(self, index: int, positions: np.ndarray | slice) -> dict[str, Any]:
        """Cut some candidates of a series, its CT staying open."""
        with self._lock:
            scan = self._scan(index)
        return apply(self.steps[1:], {**scan, "center_xyz": self.data[index]["center_xyz"][positions]})


def _is_shorter(path: Path, size: int) -> bool:
    """Tell whether a mapped file has been truncated: reading it would end the process by SIGBUS."""
    try:
        return os.stat(path).st_size < size  # noqa: PTH116 - pathlib takes twice the time, once a series and batch
    except OSError:  # removed: its content stays mapped
        return False
