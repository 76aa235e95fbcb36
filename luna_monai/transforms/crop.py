"""Cropping of candidates from a CT."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from numpy.typing import ArrayLike

from luna_monai.errors import LunaError


def window_start(center: ArrayLike, size: ArrayLike, available: ArrayLike) -> np.ndarray:
    """Compute where the window around a voxel starts, as the book does (chapter 10.4), along one or several axes.

    Args:
        center: index of the voxel.
        size: size of the window, in voxels.
        available: size of the volume, in voxels, at least ``size``.

    Returns:
        Index of the first voxel, int64: ``center - size / 2``, rounded half to even, moved inside the volume.
    """
    start = np.round(np.subtract(center, np.divide(size, 2)))
    return np.clip(start, 0, np.subtract(available, size)).astype(np.int64)


class CropCandidates(Transform):
    """Crop a block of ``spatial_size`` voxels around each of several centers, as the book does (chapter 10.4).

    A block starts at ``int(round(center - size / 2))`` along each axis, with Python's rounding. A block that would
    exceed the volume is moved inside and never padded. MONAI's crops have a single, fixed center, and shorten the block
    at the high edge.

    Args:
        spatial_size: size of the blocks in voxels, (z, y, x).
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        self.spatial_size = tuple(int(size) for size in spatial_size)

    def __call__(self, img: torch.Tensor, roi_centers: np.ndarray) -> torch.Tensor:
        """Crop all blocks.

        Args:
            img: the volume, (channel, z, y, x).
            roi_centers: (n, 3) voxel indices, (z, y, x), all inside the volume.

        Returns:
            (n, channel, *spatial_size), a contiguous plain tensor of the type of ``img``, without shared memory.

        Raises:
            LunaError: when the volume is smaller than a block, or a center is outside the volume.
        """
        source = getattr(img, "meta", {}).get("filename_or_obj", "volume")
        shape, centers = tuple(img.shape[1:]), np.asarray(roi_centers).reshape(-1, 3)
        if np.less(shape, self.spatial_size).any():
            found, wanted = (" x ".join(map(str, each)) for each in (shape, self.spatial_size))
            raise LunaError(f"{source}: the volume of {found} voxels (z,y,x) is smaller than the crop of {wanted}")
        outside = ((centers < 0) | (centers >= shape)).any(axis=1)
        if outside.any():
            center = tuple(centers[outside][0].tolist())
            raise LunaError(f"{source}: voxel {center} (z,y,x) lies outside the volume of {shape} voxels")
        volume = (img.as_tensor() if isinstance(img, MetaTensor) else img).numpy()
        # NumPy uses huge pages and torch does not, and most of the time here is spent on the first access to memory.
        blocks = np.empty((len(centers), volume.shape[0], *self.spatial_size), dtype=volume.dtype)
        depth, height, width = self.spatial_size
        starts = window_start(centers, self.spatial_size, shape).tolist()
        for block, (z, y, x) in zip(blocks, starts, strict=True):
            block[...] = volume[:, z : z + depth, y : y + height, x : x + width]
        return torch.from_numpy(blocks)


class CropCandidatesd(MapTransform):
    """Crop all candidates of a series from its CT: dictionary wrapper of :class:`CropCandidates`.

    The key ``center_xyz``, (n, 3), the centers of the candidates x, y, z in mm (LPS), is replaced by the key
    ``center_irc``, (n, 3), their voxel indices z, y, x ("IRC" in the book).

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
            # Use the geometry of the loaded scan: positions from the affine would be rounded differently.
            image, geometry = d[key], getattr(d[key], "meta", {}).get("geometry")
            if geometry is None or not np.allclose(image.affine.numpy(), geometry.affine_ras_zyx):
                raise LunaError(f"{key}: not a scan of LoadScand, or resampled; crop directly after LoadScand")
            centers = geometry.world_to_index(points)
            d["center_irc"] = torch.from_numpy(centers)
            d[key] = self.cropper(image, centers)
        return d
