"""Loading one CT."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from luna_monai.scans.header import ScanHeader
from luna_monai.scans.scan import read_scan
from luna_monai.scans.sources import ScanSource


class LoadScan(Transform):
    """Load a scan in HU with its axes turned.

    Args:
        orientation: where the x, y and z axes of the result lead; None leaves them as they are in the file.
    """

    # MONAI's LoadImage makes one of every reader that is installed and keeps them all: it warns where pydicom misses
    # a CUDA library, and its hash, by which cached files are found, changes with the packages of a machine.

    def __init__(self, orientation: str | None = "LPS") -> None:
        self.orientation = orientation

    def __call__(self, source: str | ScanSource | ScanHeader) -> MetaTensor:
        """Load a scan.

        Args:
            source: its path, where it is, or its header, which is then not read again.

        Returns:
            (1, z, y, x) in HU, int16 or float32, with ``affine`` (z, y, x indices to RAS mm); ``meta`` holds the
            :class:`~luna_monai.scans.Geometry` as ``geometry``.

        Raises:
            LunaError: when the scan is missing or damaged.
        """
        scan = read_scan(source, self.orientation)
        meta = {"filename_or_obj": str(scan.header.path), "space": "RAS", "geometry": scan.geometry}
        return MetaTensor(torch.from_numpy(scan.voxels)[None], affine=scan.geometry.affine_ras_zyx, meta=meta)


class LoadScand(MapTransform):
    """Dictionary wrapper of :class:`LoadScan`; takes the place of MONAI's ``LoadImaged``.

    Args:
        keys: keys of the scans.
        orientation: where the x, y and z axes of the result lead; None leaves them as they are in the file.
        allow_missing_keys: do not raise an error if a key is missing.
    """

    def __init__(self, keys: KeysCollection, orientation: str | None = "LPS", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.loader = LoadScan(orientation)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each path, source or header by its volume, a MetaTensor (1, z, y, x)."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.loader(d[key])
        return d
