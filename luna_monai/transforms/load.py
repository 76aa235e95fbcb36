"""Loading of CTs."""

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
    """Load a scan in HU, with axes in the given directions.

    Args:
        orientation: directions of the x, y and z axes of the result; None keeps the axes of the file.
    """

    # Not MONAI's LoadImage, which creates all installed readers: it warns if pydicom misses a CUDA library, and its
    # hash, which is part of the names of cache files, depends on the installed packages. It also turns its argument
    # into a path, so a header would be read twice, and fails for metadata of other types, such as Geometry.

    def __init__(self, orientation: str | None = "LPS") -> None:
        self.orientation = orientation

    def __call__(self, source: str | ScanSource | ScanHeader) -> MetaTensor:
        """Load a scan.

        Args:
            source: path of the scan, its :class:`ScanSource`, or its header, which is not read again.

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
    """Dictionary wrapper of :class:`LoadScan`, used in place of MONAI's ``LoadImaged``.

    Args:
        keys: keys of the scans.
        orientation: directions of the x, y and z axes of the result; None keeps the axes of the file.
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
