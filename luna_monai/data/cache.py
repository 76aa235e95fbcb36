"""The cache of cut candidates: one file a series."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import PersistentDataset
from monai.transforms import RandomizableTrait, Transform

from luna_monai.data.cache_files import (
    apply,
    build_series,
    fingerprint,
    hash_of,
    name_of,
    open_mapped,
    series_hashing,
    transform_hashing,
)
from luna_monai.data.candidates import DatasetScans
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.transforms import CropCandidatesd

logger = logging.getLogger(__name__)

_OPEN_SERIES = 20_000  # a mapped file costs one of the 65,530 memory maps that Linux gives a process
_LOADED_SCANS = 4  # without a cache: a compressed CT is kept in memory whole, up to 400 MB


def series_items(candidates: pd.DataFrame, dataset_dir: str | Path | DatasetScans) -> list[dict[str, Any]]:
    """List the series of a candidate table as the items of a :class:`SeriesCache`.

    The cache is made of *all* candidates of a series, so that every split of them shares it: pass the whole table,
    not a part of it.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`.
        dataset_dir: the LUNA16 dataset folder of the table.

    Returns:
        A dict for each series, in the order of their first candidates: ``seriesuid``; ``image``, the
        :class:`~luna_monai.scans.ScanHeader` of the CT; ``files``, the fingerprints of its files; ``center_xyz``, the
        world positions of the series' candidates, float64 (n, 3) in the order of the table; ``row``, their index in it.

    Raises:
        LunaError: when a series has no CT, its voxel file is missing or too short, or is outside of the folder.
    """
    scans = DatasetScans.of(dataset_dir)
    # resolve() would follow links out of the folder.
    root = Path(os.path.abspath(scans.dataset_dir))  # noqa: PTH100
    points = candidates[COORDINATES].to_numpy()

    def make_item(group: tuple[Any, np.ndarray]) -> dict[str, Any]:
        seriesuid, rows = str(group[0]), group[1]
        if seriesuid not in scans:
            raise LunaError(f"{scans.dataset_dir}: no CT of series {seriesuid}; give the dataset_dir of the candidates")
        header = scans[seriesuid]
        files = []
        for path in header.files:
            place = Path(os.path.abspath(path))  # noqa: PTH100
            if not place.is_relative_to(root):
                raise LunaError(
                    f"{header.path}: its voxels are in {path}, outside {scans.dataset_dir}; move them beside the header"
                )
            files.append({"path": place.relative_to(root).as_posix(), **fingerprint(path)})
        return {
            "seriesuid": seriesuid,
            "image": header,
            "files": files,
            "center_xyz": points[rows],
            "row": candidates.index[rows].to_numpy(),
        }

    with ThreadPoolExecutor(8) as pool:  # disks and networks answer several at once
        return list(pool.map(make_item, candidates.groupby("seriesuid", sort=False).indices.items()))


class SeriesCache(PersistentDataset):
    """All candidates of each series, cut once and kept on disk: a ``PersistentDataset`` whose items are series.

    A file holds ``image``, int16 (n, 1, 32, 48, 48) in HU; ``center_irc``, int64 (n, 3), z,y,x; and ``made_from``,
    the description of what it was made from. Its name holds the series, the hash of that description and the hash of
    the deterministic transforms with all their parameters: any change of the inputs changes the name, so stale files
    are never read. Files are mapped into memory, not loaded. They are written to a temporary name in the same folder,
    flushed to disk and renamed, so a file under its final name is complete.

    Args:
        data: items of :func:`series_items`.
        transform: deterministic transforms that turn an item into ``image`` and ``center_irc``; the first loads the
            CT.
        cache_dir: folder of the files; made when missing. None keeps nothing on disk: candidates are cut when they
            are asked for.

    Raises:
        LunaError: when the folder cannot be made, a transform is random, or none of them cuts.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Sequence[Callable] | Callable,
        cache_dir: str | Path | None,
    ) -> None:
        try:
            super().__init__(
                data=data,
                transform=transform,
                cache_dir=cache_dir,
                hash_func=series_hashing,
                hash_transform=transform_hashing,
            )
        except (OSError, ValueError) as error:
            raise LunaError(
                f"{cache_dir}: cannot be used as cache folder ({error}); choose another cache_dir"
            ) from None
        # Flattening makes a Compose, and that draws random seeds: once is enough.
        self.steps = list(self.transform.flatten().transforms)
        for step in self.steps:
            if isinstance(step, RandomizableTrait) or not isinstance(step, Transform):
                raise LunaError(f"{type(step).__name__}: only MONAI's deterministic transforms can be cached")
        self.spatial_size = _spatial_size(self.steps)
        self._open: dict[int, dict[str, Any]] = {}
        self._mapped_scans: dict[int, dict[str, Any]] = {}
        self._loaded_scans: dict[int, dict[str, Any]] = {}
        self._paths: dict[int, Path] = {}
        # Threads may come for the same file, and it must not be made twice at the same time.
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker maps the files itself: pickling a mapped tensor would send its voxels.
        return self.__dict__ | {"_open": {}, "_mapped_scans": {}, "_loaded_scans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    @property
    def fingerprint(self) -> str:
        """Hash of all inputs of the voxels: scans, candidates and transforms, the series in any order."""
        series = sorted(f"{item['seriesuid']} {self.hash_func(item).decode()}" for item in self.data)
        return hash_of([self.transform_hash, series])

    def path_of(self, index: int) -> Path:
        """Return the file of series number ``index``, whether it exists or not."""
        if self.cache_dir is None:
            raise ValueError("a SeriesCache without cache_dir has no files")
        if index not in self._paths:
            item = self.data[index]
            name = name_of(item["seriesuid"], self.hash_func(item).decode(), self.transform_hash)
            self._paths[index] = self.cache_dir / name
        return self._paths[index]

    def missing(self) -> list[int]:
        """List the series that are not in the cache yet, by their number in ``data``."""
        if self.cache_dir is None:
            return []
        present = {entry.name for entry in os.scandir(self.cache_dir)}
        return [index for index in range(len(self.data)) if self.path_of(index).name not in present]

    def bytes_needed(self, indices: Sequence[int]) -> int:
        """Estimate how many bytes the files of these series take: their voxels, and a little for each file."""
        per_candidate = 2 * int(np.prod(self.spatial_size))
        return sum(len(self.data[index]["center_xyz"]) * (per_candidate + 128) + 8192 for index in indices)

    def check_files(self) -> None:
        """Close files that have become shorter than they are mapped: reading them would end the process by SIGBUS.

        They are cut again when they are next needed.
        """
        with self._lock:
            for index, entry in list(self._open.items()):
                path = self.path_of(index)
                if path.is_file() and path.stat().st_size < entry["bytes"]:
                    logger.warning("%s: truncated while in use", path)
                    del self._open[index]

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
        images: list[torch.Tensor] = [torch.empty(0)] * len(series)
        center_irc = torch.empty((len(series), 3), dtype=torch.int64)
        if self.cache_dir is None:
            for index in np.unique(series).tolist():
                wanted = np.flatnonzero(series == index)
                cut = self._cut(index, position[wanted])
                center_irc[wanted] = cut["center_irc"]
                for slot, image in zip(wanted.tolist(), cut["image"], strict=True):
                    images[slot] = image
        else:
            for slot, (index, place) in enumerate(zip(series.tolist(), position.tolist(), strict=True)):
                entry = self._open.get(index) or self[index]
                images[slot] = entry["image"][place]
                center_irc[slot] = entry["center_irc"][place]
        return self._stack(images), center_irc

    def _stack(self, images: list[torch.Tensor]) -> torch.Tensor:
        # NumPy asks for huge pages, torch does not: fresh memory for 256 candidates is four times as fast.
        batch = np.empty((len(images), 1, *self.spatial_size), dtype=np.int16)
        for slot, image in zip(batch, images, strict=True):
            slot[...] = image.numpy()
        return torch.from_numpy(batch)

    def _transform(self, index: int) -> Any:
        # PersistentDataset looks an item up by its content alone; here its number finds it while it is open.
        if self.cache_dir is None:
            return self._cut(index, slice(None))
        with self._lock:
            entry = self._open.get(index)
            if entry is None:
                entry = self._map(index)
                if entry is None:
                    build_series(*self.job(index))
                    entry = self._map(index)
                if entry is None:
                    raise LunaError(
                        f"{self.path_of(index)}: cannot be read although it was just written; check the disk"
                    )
                while len(self._open) >= _OPEN_SERIES:
                    self._open.pop(next(iter(self._open)))
                self._open[index] = entry
        return entry

    def job(self, index: int) -> tuple[Path, dict[str, Any], list[Callable]]:
        """Return the arguments of :func:`~luna_monai.data.cache_files.build_series` for series number ``index``."""
        return self.path_of(index), self.data[index], self.steps

    def _map(self, index: int) -> dict[str, Any] | None:
        """Map a file, or return None when there is none or it is damaged."""
        path = self.path_of(index)
        if not path.is_file():
            return None
        try:
            entry = open_mapped(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s: damaged (%s); it is cut again from the CT", path, error)
            return None
        # Not made_from: its name tells, and it takes 30 kB.
        return {"image": entry["image"], "center_irc": entry["center_irc"], "bytes": path.stat().st_size}

    def _cut(self, index: int, positions: np.ndarray | slice) -> dict[str, Any]:
        """Cut some candidates of a series, its CT staying open."""
        item = self.data[index]
        with self._lock:
            scan = self._mapped_scans.get(index) or self._loaded_scans.get(index) or self._load(index)
        return apply(self.steps[1:], {**scan, "center_xyz": item["center_xyz"][positions]})

    def _load(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        scan = apply(self.steps[:1], item)
        scans, limit = self._loaded_scans, _LOADED_SCANS
        if scan["image"].meta["mapped"]:
            scans, limit = self._mapped_scans, _OPEN_SERIES
        while len(scans) >= limit:
            scans.pop(next(iter(scans)))
        scans[index] = scan
        return scan


def _spatial_size(transforms: Sequence[Any]) -> tuple[int, ...]:
    for transform in transforms:
        if isinstance(transform, CropCandidatesd):
            return transform.cropper.spatial_size
    raise LunaError("none of the cached transforms is a CropCandidatesd, so nothing is cut")
