"""Augmentation of whole batches, where the network runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.transforms import RandomizableTrait


class RandAugmentCandidates(RandomizableTrait):
    """Flips, shifts, scales and rotates candidates, and adds an offset and noise (chapter 12.6).

    Each candidate of a batch gets its own random values. All spatial changes are one resampling, trilinear, with the
    voxels of the border repeated outside. Random numbers come from torch's global generator of the batch's device.

    Args:
        flip: flip each axis with probability 1/2.
        shift: largest shift along each axis, in voxels.
        scale: largest change of size: 0.1 is from 0.9 to 1.1 times.
        rotate: largest rotation in the plane of the slices, to either side, in degrees. Slices are further apart than
            voxels within them, so there is no rotation out of the plane.
        offset: largest offset, to either side, in HU.
        noise: largest standard deviation of Gaussian noise, in HU; each candidate's is drawn between 0 and this.
        hu_range: what the result is clipped to, in HU.
    """

    def __init__(
        self,
        flip: bool = True,
        shift: float = 0.0,
        scale: float = 0.0,
        rotate: float = 0.0,
        offset: float = 0.0,
        noise: float = 0.0,
        hu_range: tuple[float, float] = (-1000.0, 1000.0),
    ) -> None:
        self.flip = flip
        self.shift = shift
        self.scale = scale
        self.rotate = rotate
        self.offset = offset
        self.noise = noise
        self.hu_range = hu_range

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            image: float (N, C, D, H, W), in HU.

        Returns:
            A batch of the same shape, type and memory format.
        """
        if self.shift or self.scale or self.rotate:
            image = self._resample(image)
        elif self.flip:
            image = self._flip(image)
        if self.offset:
            image = image + self._uniform(image, self.offset)
        if self.noise:
            deviation = self._uniform(image, self.noise).abs()
            image = image + deviation * torch.randn_like(image)
        return image.clamp(*self.hu_range)

    def _uniform(self, image: torch.Tensor, largest: float, *shape: int) -> torch.Tensor:
        shape = shape or (1,) * (image.dim() - 1)
        return (torch.rand((len(image), *shape), device=image.device, dtype=image.dtype) * 2 - 1) * largest

    def _flip(self, image: torch.Tensor) -> torch.Tensor:
        for axis in (2, 3, 4):
            chosen = torch.rand(len(image), device=image.device) < 0.5
            image = torch.where(chosen[:, None, None, None, None], image.flip(axis), image)
        return image

    def _resample(self, image: torch.Tensor) -> torch.Tensor:
        half = torch.tensor(image.shape[:1:-1], device=image.device, dtype=image.dtype) / 2  # x, y, z, in voxels
        angle = torch.deg2rad(self._uniform(image, self.rotate, 1)[:, 0])
        size = 1 + self._uniform(image, self.scale, 1)
        sign = torch.ones((len(image), 3), device=image.device, dtype=image.dtype)
        if self.flip:
            sign = torch.where(torch.rand_like(sign) < 0.5, -sign, sign)
        # From output to input, in voxels from the centre: flip, then scale, then rotate about the z axis.
        matrix = torch.diag_embed(sign / size)
        rotation = torch.eye(3, device=image.device, dtype=image.dtype).repeat(len(image), 1, 1)
        rotation[:, 0, 0] = rotation[:, 1, 1] = angle.cos()
        rotation[:, 1, 0] = angle.sin()
        rotation[:, 0, 1] = -angle.sin()
        matrix = rotation @ matrix
        shift = self._uniform(image, self.shift, 3)
        # grid_sample counts from -1 to 1 along each axis, whatever its length.
        theta = torch.cat([matrix * half / half[:, None], (shift / half)[..., None]], dim=2)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
