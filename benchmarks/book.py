"""The book's cache of candidates (chapters 10 and 11): one ``diskcache`` entry per candidate, in float32.

Modeled on the book's ``dsets.py`` and ``prepcache.py``, but without compression, which makes entries smaller but slower
to read.
"""

from __future__ import annotations

import functools
from pathlib import Path

import diskcache
import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from common import SIZE
from torch.utils.data import Dataset


@functools.lru_cache(1)
def get_ct(path: str) -> tuple[np.ndarray, sitk.Image]:
    """Load and clip a CT; the last one is kept in memory."""
    image = sitk.ReadImage(path)
    hu = np.array(sitk.GetArrayFromImage(image), dtype=np.float32)
    hu.clip(-1000, 1000, hu)
    return hu, image


class BookDataset(Dataset):
    """A dataset of candidates, each from a ``diskcache`` or cropped from its CT."""

    def __init__(self, candidates: pd.DataFrame, scans: dict[str, Path], cache_dir: Path) -> None:
        self.rows = list(candidates[["seriesuid", "coordX", "coordY", "coordZ"]].itertuples(index=False, name=None))
        self.scans = {uid: str(path) for uid, path in scans.items()}
        self.cache = diskcache.FanoutCache(str(cache_dir), shards=64, timeout=1, size_limit=3e11)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        crop = self.cache.get(self.rows[index])
        if crop is None:
            crop = self._cut(*self.rows[index])
            self.cache.set(self.rows[index], crop)
        return torch.from_numpy(crop).unsqueeze(0)

    def _cut(self, seriesuid: str, *center_xyz: float) -> np.ndarray:
        hu, image = get_ct(self.scans[seriesuid])
        spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
        center = np.round((np.array(center_xyz) - origin) / spacing).astype(int)[::-1]
        window = []
        for axis, size in enumerate(SIZE):
            first = min(max(int(round(center[axis] - size / 2)), 0), hu.shape[axis] - size)  # noqa: RUF046
            window.append(slice(first, first + size))
        return hu[tuple(window)].copy()
