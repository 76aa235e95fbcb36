"""Datasets of candidates, including the book's ``LunaDataset``, and their data loader."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader
from torch.utils.data import DistributedSampler

from luna_monai.data.cache import SeriesCache, series_items
from luna_monai.data.candidates import DatasetScans, read_candidates
from luna_monai.data.splits import split_by_stride
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand


def scan_list(cache: SeriesCache, candidates: pd.DataFrame) -> list[dict[str, Any]]:
    """List the scans of candidates as ``{"image": path, "label": 0 or 1}``, with 1 if a candidate is a nodule.

    Args:
        cache: the cache, whose items refer to the files of all scans.
        candidates: the candidate table, or a part of it.
    """
    label = candidates.groupby("seriesuid")["class"].max()
    items = (item for item in cache.data if item["seriesuid"] in label.index)
    return [{"image": str(item["image"].path), "label": int(label[item["seriesuid"]])} for item in items]


class CandidateDataset(torch.utils.data.Dataset):
    """Dataset of candidates, in the order of a candidate table.

    Item ``i`` is a dict with ``image``, int16 (1, 32, 48, 48), HU in [-1000, 1000]; ``label``, 0 or 1; ``seriesuid``;
    ``center_irc``, int64 (3,), the voxel of the center z, y, x; ``center_xyz``, float64 (3,), the center x, y, z in mm
    (LPS); and ``row``, the index in the whole candidate table.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`, or a part of it.
        cache: the cache of the whole table.
        data: the scans of these candidates, see :func:`scan_list`. MONAI's applications read this attribute.

    Raises:
        LunaError: when a candidate is not in the items of the cache.
    """

    def __init__(self, candidates: pd.DataFrame, cache: SeriesCache, data: Sequence[dict[str, Any]] = ()) -> None:
        self.cache = cache
        self.data = data
        series = np.repeat(np.arange(len(cache.data)), [len(item["row"]) for item in cache.data])
        points = np.concatenate([np.reshape(item["center_xyz"], (-1, 3)) for item in cache.data])
        rows = np.concatenate([item["row"] for item in cache.data])
        places = pd.DataFrame(points, columns=COORDINATES, index=rows).assign(series=series)
        places["position"] = places.groupby("series").cumcount()
        places = places.reindex(candidates.index)
        if not np.array_equal(places[COORDINATES], candidates[COORDINATES]):  # NaN for unknown rows
            raise LunaError("the candidates are not part of the table of the cache; create the cache of this table")
        self.row = candidates.index.to_numpy(copy=True)
        self.label = candidates["class"].to_numpy(copy=True)  # torch requires writable arrays
        self.center_xyz = candidates[COORDINATES].to_numpy(copy=True)
        self._seriesuid = [str(item["seriesuid"]) for item in cache.data]
        self._series, self._position = places[["series", "position"]].to_numpy(dtype=int).T

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {key: value[0] for key, value in self.read([index]).items()}
        return item | {"label": int(item["label"]), "row": int(item["row"])}

    def read(self, indices: Sequence[int]) -> dict[str, Any]:
        """Read a batch of candidates.

        Args:
            indices: indices of the candidates in this dataset.

        Returns:
            The values of the items, stacked to tensors whose first axis is the candidate. ``seriesuid`` is a list.

        Raises:
            LunaError: when a series cannot be read.
        """
        chosen = np.asarray(indices)
        image, center_irc = self.cache.read(self._series[chosen], self._position[chosen])
        return {
            "image": image,
            "label": torch.from_numpy(self.label[chosen]),
            "seriesuid": [self._seriesuid[number] for number in self._series[chosen].tolist()],
            "center_irc": center_irc,
            "center_xyz": torch.from_numpy(self.center_xyz[chosen]),
            "row": torch.from_numpy(self.row[chosen]),
        }


class LunaDataset(CandidateDataset):
    """The dataset of the book (chapter 10.5): the candidates of a LUNA16 folder as tuples.

    Item ``i`` is ``(candidate_t, pos_t, series_uid, center_irc)``: float32 (1, 32, 48, 48) in HU clipped to
    [-1000, 1000]; int64 (2,), (not a nodule, nodule); the series UID; and int64 (3,), the voxel of the center z, y, x.
    As in the book, the axes of scans are those of the file.

    Args:
        dataset_dir: LUNA16 dataset folder.
        val_stride: every ``val_stride``-th candidate belongs to the validation part; 0 for no split.
        is_val_set: True for the validation part. Otherwise the training part, or all candidates without a split.
        series_uid: use only the candidates of this scan.
        cache_dir: folder of the cache; None crops candidates when they are read.
        outside_volume: for candidates outside their CT, ``"error"`` or ``"drop"``.

    Raises:
        LunaError: when the folder or its tables are missing or damaged, or no candidates are left.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        val_stride: int = 0,
        is_val_set: bool | None = None,
        series_uid: str | None = None,
        *,
        cache_dir: str | Path | None = None,
        outside_volume: str = "error",
    ) -> None:
        scans = DatasetScans(dataset_dir)
        candidates = read_candidates(scans, outside_volume=outside_volume)
        crop, clip = CropCandidatesd("image", (32, 48, 48)), ClipIntensityRanged("image", -1000, 1000)
        steps = [LoadScand("image", None), crop, clip]
        part = candidates if series_uid is None else candidates[candidates["seriesuid"] == series_uid]
        if val_stride > 0 or is_val_set:
            part = split_by_stride(part, val_stride)[1 if is_val_set else 0]
        if part.empty:
            raise LunaError(f"{dataset_dir}: no candidates" + (f" of {series_uid}" if series_uid else ""))
        super().__init__(part, SeriesCache(series_items(candidates, scans), steps, cache_dir))
        self.candidates = part

    def __getitem__(self, index: int) -> Any:
        item = super().__getitem__(index)
        label = torch.tensor([1 - item["label"], item["label"]])
        return item["image"].float(), label, item["seriesuid"], item["center_irc"]


class CandidateLoader(DataLoader):
    """MONAI's ``DataLoader`` for a :class:`CandidateDataset`. It reads whole batches, ahead of time in threads.

    Reading copies data from mapped files, and threads do this in parallel. A batch from a worker process would have to
    go through newly allocated shared memory, which takes several times as long as reading it.

    Args:
        dataset: the candidates.
        num_workers: number of threads that read ahead, each one batch. 0 reads a batch when it is needed, which is
            sufficient if the network runs on the CPU.
        shuffle: without a sampler, use a random order that depends only on ``seed`` and the epoch. MONAI's trainers
            pass the epoch to the sampler, so a resumed run continues with the same orders.
        seed: random seed of the order.
        kwargs: arguments of ``torch.utils.data.DataLoader``, such as ``batch_size`` and ``pin_memory``, except those
            for worker processes.
    """

    def __init__(
        self, dataset: CandidateDataset, num_workers: int = 0, shuffle: bool | None = None, seed: int = 0, **kwargs: Any
    ) -> None:
        if shuffle and kwargs.get("sampler") is None and kwargs.get("batch_sampler") is None:
            kwargs["sampler"] = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=seed)
            shuffle = None
        # A separate generator: if reading data used the global one, a resumed run would draw other random numbers.
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, shuffle=shuffle, **kwargs)
        if self.drop_last and len(self) == 0:
            raise LunaError(f"batch_size: {self.batch_size} exceeds the samples of an epoch; reduce batch_size")
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        pin = self.pin_memory and torch.accelerator.is_available()
        options: dict[str, Any] = {}
        if pin:  # in distributed training each process has its own GPU, but a new thread starts with the first one
            device = torch.accelerator.current_device_index()
            options = {"initializer": torch.accelerator.set_device_index, "initargs": (device,)}
        return read_ahead(partial(self._read, pin=pin), self.batch_sampler, self.num_workers, **options)

    def _read(self, indices: Sequence[int], pin: bool) -> dict[str, Any]:
        batch = self.dataset.read(indices)
        return {name: item.pin_memory() if pin and torch.is_tensor(item) else item for name, item in batch.items()}


def read_ahead(read: Callable[[Any], Any], indices: Iterable[Any], num_workers: int, **options: Any) -> Iterator[Any]:
    """Read items in order, the next ones ahead of time in threads.

    Args:
        read: reads the item of an index.
        indices: indices of the items.
        num_workers: number of threads, and of items that are read ahead; 0 reads an item when it is needed.
        options: arguments of ``ThreadPoolExecutor``.

    Yields:
        The items.
    """
    if not num_workers:
        yield from map(read, indices)
        return
    pool = ThreadPoolExecutor(num_workers, "read ahead", **options)
    try:
        waiting: deque[Future[Any]] = deque()
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
