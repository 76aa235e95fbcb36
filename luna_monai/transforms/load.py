"""Loading one CT."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform, Transform

from luna_monai.scans.readers import SimpleITKReader


class LoadScan(Transform):
    """MONAI's ``LoadImage(image_only=True, ensure_channel_first=True, dtype=None)`` with one reader, and no other.

    ``LoadImage`` sets up every reader that is installed and tries them all when the first one fails, so what is
    loaded, what is logged and how a damaged file is reported depend on the packages of a machine. A cache that many
    machines share can't be made that way.

    Args:
        reader: reads the scan.
    """

    def __init__(self, reader: ImageReader | None = None) -> None:
        self.reader = SimpleITKReader() if reader is None else reader

    def __call__(self, filename: str) -> MetaTensor:
        """Load a scan.

        Args:
            filename: its path.

        Returns:
            (1, z, y, x) in the type of the file, HU for a CT, with MONAI's metadata.

        Raises:
            LunaError: when the scan is missing or damaged.
        """
        voxels, meta = self.reader.get_data(self.reader.read(filename))
        return MetaTensor(torch.from_numpy(voxels)[None], meta=meta | {"filename_or_obj": str(filename)})


class LoadScand(MapTransform):
    """Dictionary wrapper of :class:`LoadScan`; takes the place of MONAI's ``LoadImaged``.

    Args:
        keys: keys of the paths.
        reader: reads the scans.
        allow_missing_keys: don't raise if a key is missing.
    """

    def __init__(
        self, keys: KeysCollection, reader: ImageReader | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadScan(reader)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path by its volume, a MetaTensor (1, z, y, x)."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.loader(d[key])
        return d
