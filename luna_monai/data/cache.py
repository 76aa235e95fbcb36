"""The cache of candidate crops, with one file per series."""

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
from luna_monai.transforms import CropCandidatesd

logger = logging.getLogger(__name__)

_MOST_OPEN = 30_000  # files that are mapped at once; Linux allows a process 65,530 maps


def series_items(candidates: pd.DataFrame, dataset_dir: str | Path | DatasetScans) -> list[dict[str, Any]]:
    """List the series of a candidate table as the items of a :class:`SeriesCache`.

    The cache contains *all* candidates of a series, so that all splits share it. Pass the whole table, not a part.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        dataset_dir: the LUNA16 dataset folder of the table.

    Returns:
        A dict per series, in the order of their first candidates, with the keys ``seriesuid``; ``image``, the
        :class:`~luna_monai.scans.ScanHeader` of the CT; ``files``, path, size and modification time of its files;
        ``changed_ns``, the time when one of the files was last changed or replaced; ``center_xyz``, the world positions
        of the series' candidates, float64 (n, 3) in the order of the table; and ``row``, their index in the table.

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
    """Cache of candidate crops on disk: a ``PersistentDataset`` whose items are series.

    A file contains all candidates of a series: ``image``, int16 (n, 1, 32, 48, 48) in HU, and ``center_irc``, int64
    (n, 3), z, y, x. The file name contains the series UID, a hash of the CT's files and the candidates, and a hash of
    the deterministic transforms with all their parameters. Any change of the inputs changes the file name, so stale
    files are never read. Files are memory-mapped. They are written to a temporary name in the same folder, flushed to
    disk and renamed, so a file with its final name is complete.

    Args:
        data: items of :func:`series_items`.
        transform: deterministic transforms that turn an item into ``image`` and ``center_irc``; the first one loads
            the CT.
        cache_dir: folder of the files; created if it is missing. If None, nothing is stored, and candidates are
            cropped when they are read.

    Raises:
        LunaError: when the folder cannot be created, a transform is random, or none of them crops candidates.
    """

    def __init__(
        self, data: Sequence[dict[str, Any]], transform: Sequence[Callable] | Callable, cache_dir: str | Path | None
    ) -> None:
        try:
            super().__init__(data, transform, cache_dir, hash_func=series_hashing, hash_transform=transform_hashing)
        except (OSError, ValueError) as error:
            raise LunaError(f"{cache_dir}: cannot be used as cache folder ({error}); choose another") from None
        # Flatten once only, because flattening creates a Compose, which draws random seeds.
        self.steps = steps = list(self.transform.flatten().transforms)
        wrong = [step for step in steps if isinstance(step, RandomizableTrait) or not isinstance(step, Transform)]
        if wrong:
            raise LunaError(f"{type(wrong[0]).__name__}: only MONAI's deterministic transforms can be cached")
        crop = next((step for step in steps if isinstance(step, CropCandidatesd)), None)
        if crop is None:
            raise LunaError("none of the cached transforms is a CropCandidatesd; add one")
        self.spatial_size = tuple(crop.cropper.spatial_size)
        ends = [f".{series_hashing(item).decode()}.{self.transform_hash}.pt" for item in data]
        self.names = [file_name_of(item["seriesuid"]) + end for item, end in zip(data, ends, strict=True)]
        self._open: dict[int, dict[str, Any]] = {}
        # Without a folder, scans stay open: the last 64 if they are mapped, else the last four, with up to 400 MB each.
        # Scans with flipped axes are copied into memory.
        headers = [item["image"] for item in data]
        mapped = all(one.is_mapped and np.array_equal(one.geometry.direction, np.eye(3)) for one in headers)
        self._scan = lru_cache(64 if mapped else 4)(lambda index: apply(steps[:1], data[index]))
        # Several threads may need the same file, which must not be built twice at the same time.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker maps the files itself, because pickling a mapped tensor would copy its voxels.
        return type(self), (self.data, self.transform, self.cache_dir)

    @property
    def fingerprint(self) -> str:
        """Hash of all inputs: scans, candidates and transforms. The order of the series does not matter."""
        return hash_of(*(name.encode() for name in sorted(self.names)))

    def job(self, index: int) -> tuple[Path, dict[str, Any], list[Callable]]:
        """Return the arguments of :func:`~luna_monai.data.cache_files.build_series` for item ``index`` of ``data``."""
        return self.cache_dir / self.names[index], self.data[index], self.steps

    def missing(self) -> list[int]:
        """List the series that are not in the cache, or whose CT has changed since, as indices of ``data``."""
        return [] if self.cache_dir is None else [i for i in range(len(self.data)) if not self._is_current(i)]

    def _is_current(self, index: int) -> bool:
        """Return whether the cache has a file that was written after the last change of the CT's files."""
        # Programs can set the modification time of a file, but not the time of its last change (st_ctime). So changed
        # voxels are detected even if size and modification time are the same. Copying a CT or changing its permissions
        # sets st_ctime too, and the CT is cropped again. FAT, exFAT and Windows do not have this time.
        try:
            return bool((self.cache_dir / self.names[index]).stat().st_mtime_ns >= self.data[index]["changed_ns"])
        except FileNotFoundError:
            return False

    def bytes_needed(self, indices: Sequence[int]) -> int:
        """Estimate the size in bytes of the files of these series: their voxels, and some overhead per file."""
        per_candidate = 2 * int(np.prod(self.spatial_size))
        return sum(len(self.data[index]["center_xyz"]) * (per_candidate + 128) + 8192 for index in indices)

    def read(self, series: np.ndarray, position: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch of candidates.

        Args:
            series: (n,) index of each candidate's series in ``data``.
            position: (n,) index of each candidate among the candidates of its series.

        Returns:
            ``image``, int16 (n, 1, 32, 48, 48) in HU, and ``center_irc``, int64 (n, 3), z, y, x.

        Raises:
            LunaError: when a series is not in the cache and its CT cannot be read.
        """
        # NumPy uses huge pages and torch does not: with NumPy, memory for 256 candidates is four times as fast.
        batch = np.empty((len(series), 1, *self.spatial_size), dtype=np.int16)
        center_irc = np.empty((len(series), 3), dtype=np.int64)
        for index in np.unique(series).tolist():
            slots = np.flatnonzero(series == index)
            places = position[slots]
            if self.cache_dir is None:
                entry, places = self._crop(index, places), np.arange(len(slots))
            else:
                entry = self._entry(index)
            image = entry["image"].numpy()
            center_irc[slots] = entry["center_irc"].numpy()[places]
            for slot, place in zip(slots.tolist(), places.tolist(), strict=True):
                batch[slot] = image[place]
        return torch.from_numpy(batch), torch.from_numpy(center_irc)

    def _transform(self, index: int) -> Any:
        # PersistentDataset would hash the content of the item at each access; open files are found by index.
        return self._crop(index, slice(None)) if self.cache_dir is None else self._entry(index)

    def _entry(self, index: int) -> dict[str, Any]:
        """Return the mapped file of a series; build the file first if it is missing."""
        path, entry = self.cache_dir / self.names[index], self._open.get(index)
        if entry is not None and not _is_shorter(path, entry["bytes"]):
            return entry
        with self._lock:
            known = self._open.get(index)
            if known is None or known is entry:  # else another thread has opened it meanwhile
                entry = self._map(path) if self._is_current(index) else None
                if entry is None:
                    build_series(*self.job(index))
                    entry = self._map(path)  # without _is_current: the clocks of two disks may differ
                if entry is None:
                    raise LunaError(f"{path}: cannot be read although it was just written; check the disk")
                if len(self._open) >= _MOST_OPEN:
                    del self._open[next(iter(self._open))]
                self._open[index] = entry
            return self._open[index]

    def _map(self, path: Path) -> dict[str, Any] | None:
        """Map a file; return None if it is damaged."""
        try:
            return {**open_mapped(path), "bytes": path.stat().st_size}
        except (OSError, ValueError) as error:
            logger.warning("%s: damaged (%s); it is built again from the CT", path, error)
            return None

    def _crop(self, index: int, positions: np.ndarray | slice) -> dict[str, Any]:
        """Crop some candidates of a series, and keep its CT open."""
        with self._lock:
            scan = self._scan(index)
        return apply(self.steps[1:], {**scan, "center_xyz": self.data[index]["center_xyz"][positions]})


def _is_shorter(path: Path, size: int) -> bool:
    """Return whether a mapped file has been truncated, because reading it would end the process with SIGBUS."""
    try:
        return os.stat(path).st_size < size  # noqa: PTH116 - pathlib takes twice as long, per series and batch
    except OSError:  # the file was removed, and its content stays mapped
        return False
