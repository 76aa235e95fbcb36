"""Cutting the candidates out of a CT."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import ArrayLike

from luna_monai.errors import LunaError


def window_start(center: ArrayLike, size: ArrayLike, available: ArrayLike) -> np.ndarray:
    """Find where the window around a voxel begins, as the book does (chapter 10.4), along one axis or several.

    Args:
        center: index of the voxel.
        size: of the window, in voxels.
        available: voxels of the volume, at least ``size``.

    Returns:
        Index of the first voxel, int64: ``center - size / 2``, halves rounded to even, moved inside the volume.
    """
    start = np.round(np.subtract(center, np.divide(size, 2)))
    return np.clip(start, 0, np.subtract(available, size)).astype(np.int64)


class CropCandidates(Transform):
    """Cut a block of ``spatial_size`` voxels around each of many centers, as the book does (chapter 10.4).

    The block starts at ``int(round(center - size / 2))`` along each axis, with Python's rounding; where that reaches
    out of the volume it is moved inside, never padded. MONAI's own crops take one center, fixed when they are made,
    and shorten the block at the high edge.

    Args:
        spatial_size: size of the blocks in voxels, (z, y, x).
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        self.spatial_size = tuple(int(size) for size in spatial_size)

    def __call__(self, img: torch.Tensor, roi_centers: np.ndarray) -> torch.Tensor:
        """Cut all blocks.

        Args:
            img: the volume, (channel, z, y, x).
            roi_centers: (n, 3) voxel indices, (z, y, x), all inside the volume.

        Returns:
            (n, channel, *spatial_size), a plain contiguous tensor of ``img``'s type that shares no memory with it.

        Raises:
            LunaError: when the volume is smaller than a block, or a center lies outside of it.
        """
        source = getattr(img, "meta", {}).get("filename_or_obj", "volume")
        shape, centers = tuple(img.shape[1:]), np.asarray(roi_centers).reshape(-1, 3)
        if np.less(shape, self.spatial_size).any():
            found, wanted = (" x ".join(map(str, each)) for each in (shape, self.spatial_size))
            raise LunaError(f"{source}: {found} voxels (z,y,x) are too few for candidates of {wanted}")
        outside = ((centers < 0) | (centers >= shape)).any(axis=1)
        if outside.any():
            center = tuple(centers[outside][0].tolist())
            raise LunaError(f"{source}: voxel {center} (z,y,x) lies outside the volume of {shape} voxels")
        volume = (img.as_tensor() if isinstance(img, MetaTensor) else img).numpy()
        # NumPy asks for huge pages and torch does not: most of the time here goes into touching new memory.
        blocks = np.empty((len(centers), volume.shape[0], *self.spatial_size), dtype=volume.dtype)
        depth, height, width = self.spatial_size
        starts = window_start(centers, self.spatial_size, shape).tolist()
        for block, (z, y, x) in zip(blocks, starts, strict=True):
            block[...] = volume[:, z : z + depth, y : y + height, x : x + width]
        return torch.from_numpy(blocks)


class CropCandidatesd(MapTransform):
    """Cut all candidates of a series out of its CT: dictionary wrapper of :class:`CropCandidates`.

    The candidates' centers, ``center_xyz``, (n, 3), world x,y,z in mm (LPS), are replaced by their voxel indices,
    ``center_irc``, (n, 3), z,y,x ("IRC" in the book).

    Args:
        keys: key of the CT, a MetaTensor (1, z, y, x) as :class:`~luna_monai.transforms.LoadScand` loads it.
        spatial_size: size of the blocks in voxels, (z, y, x).
        allow_missing_keys: do not raise an error if a key is missing.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.cropper = CropCandidates(spatial_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each CT by its (n, 1, *spatial_size) blocks."""
        d = dict(data)
        points = np.asarray(d.pop("center_xyz"), dtype=float).reshape(-1, 3)
        for key in self.key_iterator(d):
            # The geometry that the scan was loaded with: numbers in an affine are rounded differently.
            image, geometry = d[key], getattr(d[key], "meta", {}).get("geometry")
            if geometry is None or not np.allclose(image.affine.numpy(), geometry.affine_ras_zyx):
                raise LunaError(f"{key}: not as LoadScand loads a scan; cut candidates before it is resampled")
            centers = geometry.world_to_index(points)
            d["center_irc"] = torch.from_numpy(centers)
            d[key] = self.cropper(image, centers)
        return d


def candidate_size(transforms: Iterable[Any]) -> tuple[int, ...]:
    """Look up the size of what :class:`CropCandidatesd` cuts.

    Args:
        transforms: a list of transforms with one that cuts candidates.

    Returns:
        The size of a candidate in voxels, (z, y, x).

    Raises:
        LunaError: when none of them cuts.
    """
    for transform in transforms:
        if isinstance(transform, CropCandidatesd):
            return tuple(transform.cropper.spatial_size)
    raise LunaError("none of the cached transforms is a CropCandidatesd, so nothing is cut")
