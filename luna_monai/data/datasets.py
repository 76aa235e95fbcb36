"""The dataset of candidates that the engines read (the book's ``LunaDataset``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader

from luna_monai.data.cache import SeriesCache
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError


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

    Raises:
        LunaError: when a candidate of the table is not in the cache's items.
    """

    def __init__(self, candidates: pd.DataFrame, cache: SeriesCache) -> None:
        self.cache = cache
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
        """Read several candidates at once; PyTorch's loaders ask this of a dataset that has it."""
        chosen = np.asarray(indices)
        series, position = self._series[chosen], self._position[chosen]
        image, center_irc = self.cache.read(series, position)
        return CandidateBatch(
            {
                "image": image,
                "label": torch.from_numpy(self.label[chosen]),
                "seriesuid": [self._seriesuid[number] for number in series.tolist()],
                "center_irc": center_irc,
                "center_xyz": torch.from_numpy(self.center_xyz[chosen]),
                "row": torch.from_numpy(self.row[chosen]),
            }
        )


class CandidateLoader(DataLoader):
    """MONAI's ``DataLoader`` for a :class:`CandidateDataset`: batches arrive stacked.

    Args:
        dataset: the candidates.
        num_workers: processes that read ahead; 0 reads in the training process, which the mapped cache makes the
            best choice on a CPU.
        kwargs: as for ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: CandidateDataset, num_workers: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("persistent_workers", num_workers > 0)
        # A generator of its own: reading data must not move the global one, or a resumed run would draw other numbers.
        kwargs.setdefault("generator", torch.Generator())
        super().__init__(dataset, num_workers=num_workers, collate_fn=collate_candidates, **kwargs)
