"""The dataset of candidates that the engines read (the book's ``LunaDataset``)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from monai.data import DataLoader

from luna_monai.data.cache import SeriesCache
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError

logger = logging.getLogger(__name__)

_USABLE = 0.9  # of a device's free memory may be filled with candidates
_READ_AT_ONCE = 256  # candidates, on their way to the device


class CandidateBatch(Sequence):
    """Several candidates, read at once.

    To a collate function it is the list of dicts that it expects; :func:`collate_candidates` takes the stacked
    tensors as they are, without copying each candidate once more.

    Args:
        stacked: the candidates' values, stacked: tensors whose first axis is the candidate, or lists.
    """

    def __init__(self, stacked: dict[str, Any]) -> None:
        self.stacked = stacked

    def __len__(self) -> int:
        return len(self.stacked["row"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return CandidateBatch({key: value[index] for key, value in self.stacked.items()})
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        item = {key: value[index] for key, value in self.stacked.items()}
        return item | {"label": int(item["label"]), "row": int(item["row"])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def collate_candidates(batch: CandidateBatch) -> dict[str, Any]:
    """Collate function for a DataLoader over a :class:`CandidateDataset`: the batch is stacked already."""
    return batch.stacked


class CandidateDataset(torch.utils.data.Dataset):
    """Candidates as samples, in the order of a candidate table.

    Item ``i`` is a dict with ``image``, int16 (1, 32, 48, 48), HU in [-1000, 1000]; ``label``, 0 or 1; ``seriesuid``;
    ``center_irc``, int64 (3,), the voxel of the centre, z,y,x; ``center_xyz``, float64 (3,), the centre in mm (LPS);
    and ``row``, the index in the whole candidate table.

    Args:
        candidates: the table of :func:`~luna_monai.data.read_candidates`, or a part of it.
        cache: the series of the whole table.
        device: where to hold the voxels of all these candidates, 147,456 bytes each, from the first reading on: a GPU
            that has the memory needs no loader at all. They stay in the cache's files when None.

    Raises:
        LunaError: when a candidate of the table is not in the cache's items.
    """

    def __init__(self, candidates: pd.DataFrame, cache: SeriesCache, device: torch.device | str | None = None) -> None:
        self.cache = cache
        self.device = None if device is None else torch.device(device)
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None
        rows = np.concatenate([item["row"] for item in cache.data]) if len(cache.data) else np.empty(0, dtype=int)
        sizes = [len(item["row"]) for item in cache.data]
        places = pd.DataFrame(
            {
                "series": np.repeat(np.arange(len(sizes)), sizes),
                "position": np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0, dtype=int),
            },
            index=rows,
        )
        if not candidates.index.isin(places.index).all():
            raise LunaError("the candidates are not part of the table that the cache was made for")
        places = places.loc[candidates.index]
        self.row = candidates.index.to_numpy(copy=True)
        self.label = candidates["class"].to_numpy(copy=True)  # torch wants arrays that may be written
        self.center_xyz = candidates[COORDINATES].to_numpy(copy=True)
        self._seriesuid = [str(item["seriesuid"]) for item in cache.data]
        self._series = places["series"].to_numpy()
        self._position = places["position"].to_numpy()

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> CandidateBatch:
        """Read several candidates at once; PyTorch's loaders ask this of a dataset that has it.

        Raises:
            LunaError: when a series can't be read, or the device can't hold the candidates.
        """
        chosen = np.asarray(indices)
        if self.device is None:
            image, center_irc = self.cache.read(self._series[chosen], self._position[chosen])
        else:
            if self._held is None:
                self._held = self._hold(self.device)
            index = torch.from_numpy(chosen)
            image, center_irc = self._held[0][index.to(self.device)], self._held[1][index]
        return CandidateBatch(
            {
                "image": image,
                "label": torch.from_numpy(self.label[chosen]),
                "seriesuid": [self._seriesuid[number] for number in self._series[chosen].tolist()],
                "center_irc": center_irc,
                "center_xyz": torch.from_numpy(self.center_xyz[chosen]),
                "row": torch.from_numpy(self.row[chosen]),
            }
        )

    def _hold(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self), 1, *self.cache.spatial_size)
        size = 2 * int(np.prod(shape))
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        if size > _USABLE * free:
            raise LunaError(
                f"{len(self):,} candidates need {size / 1e9:,.1f} GB on {device}, which has {free / 1e9:,.1f} GB free; "
                "set cache_on_device to false"
            )
        logger.info("%s candidates, %.1f GB, are read into the memory of %s", f"{len(self):,}", size / 1e9, device)
        image = torch.empty(shape, dtype=torch.int16, device=device)
        center_irc = torch.empty((len(self), 3), dtype=torch.int64)
        order = np.argsort(self._series, kind="stable")  # file after file
        for first in range(0, len(order), _READ_AT_ONCE):
            chosen = order[first : first + _READ_AT_ONCE]
            index = torch.from_numpy(chosen)
            part, center_irc[index] = self.cache.read(self._series[chosen], self._position[chosen])
            image[index.to(device)] = part.to(device)
        return image, center_irc


class CandidateLoader(DataLoader):
    """MONAI's ``DataLoader`` for a :class:`CandidateDataset`: batches arrive stacked.

    Args:
        dataset: the candidates.
        num_workers: processes that read ahead; 0 reads in the training process, which the mapped cache makes the
            best choice on a CPU. There are none, and nothing is pinned, where the dataset is on a device.
        kwargs: as for ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: CandidateDataset, num_workers: int = 0, **kwargs: Any) -> None:
        if dataset.device is not None:
            num_workers, kwargs["pin_memory"] = 0, False
        kwargs.setdefault("persistent_workers", num_workers > 0)
        # A generator of its own: reading data must not move the global one, or a resumed run would draw other numbers.
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate_candidates, **kwargs)
