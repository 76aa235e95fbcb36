"""Clipping of Hounsfield units."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform

from luna_monai.errors import LunaError


class ClipIntensityRange(Transform):
    """``ScaleIntensityRange(a_min, a_max, b_min=a_min, b_max=a_max, clip=True)`` that is exact for integers.

    MONAI's transform divides and multiplies in floating point and truncates the result to integers, so -337 HU can
    become -336. This transform only clips. The result is int16, the type of CTs and of the cache. Fractions of a HU
    are rounded to the nearest integer, half to even.

    Args:
        a_min: lowest value to keep, in HU; an integer in the range of int16.
        a_max: highest value to keep, in HU.
    """

    def __init__(self, a_min: int, a_max: int) -> None:
        if a_min >= a_max:
            raise LunaError(f"a_min must be below a_max, found {a_min} and {a_max}")
        self.a_min = a_min
        self.a_max = a_max

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Clip ``img``, of any shape, and return it as int16. The values of ``img`` itself are changed."""
        img.clamp_(self.a_min, self.a_max)
        if img.is_floating_point():
            img.round_()
        return img.to(torch.int16)


class ClipIntensityRanged(MapTransform):
    """Dictionary wrapper of :class:`ClipIntensityRange`.

    Args:
        keys: keys of the tensors to clip.
        a_min: lowest value to keep, in HU.
        a_max: highest value to keep, in HU.
        allow_missing_keys: do not raise an error if a key is missing.
    """

    def __init__(self, keys: KeysCollection, a_min: int, a_max: int, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clipper = ClipIntensityRange(a_min, a_max)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clip the value of each key."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.clipper(d[key])
        return d
