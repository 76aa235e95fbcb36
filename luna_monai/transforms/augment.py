"""Augmentation of whole batches, where the network runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from monai.transforms import RandomizableTrait


def resample_candidates(
    image: torch.Tensor,
    *,
    flip: torch.Tensor,
    scale: torch.Tensor,
    rotate: torch.Tensor,
    shift: torch.Tensor,
    stretch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Flip, then scale, then rotate, then shift each candidate of a batch about its center, in one resampling.

    Args:
        image: float (N, C, D, H, W); axes z, y, x.
        flip: bool (N, 3), which of z, y and x to flip.
        scale: (N,), how many times larger everything becomes.
        rotate: (N,), degrees in the plane of the slices, from the x axis towards the y axis.
        shift: (N, 3), voxels along z, y and x, towards higher indices.
        stretch: (N,), how many times larger everything becomes along z alone, beside ``scale``; 1 when None.

    Returns:
        A batch of the same shape and type: trilinear, with the voxels of the border repeated outside.
    """
    # The plane of the slices and the axis across them do not mix, so trilinear interpolation is bilinear in the plane,
    # one grid for all slices, and then linear across them: the same values in a sixth of the time.
    plane = _resample_plane(image, flip[:, 1:], scale, rotate, shift[:, 1:])
    return _resample_across(plane, flip[:, 0], scale if stretch is None else scale * stretch, shift[:, 0])


def _resample_plane(
    image: torch.Tensor, flip: torch.Tensor, scale: torch.Tensor, rotate: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    # x, y, in voxels; made on the device, for a copy from the host waits for all that a GPU has still to do.
    half = torch.stack([image.new_full((), size / 2) for size in image.shape[:-3:-1]])
    angle = torch.deg2rad(rotate)
    cos, sin = angle.cos(), angle.sin()
    # From output to input, in voxels from the center: each step undone, the last one first.
    rotation = torch.stack([torch.stack([cos, sin], dim=1), torch.stack([-sin, cos], dim=1)], dim=1)
    sign = 1 - 2 * flip.flip(1).to(image.dtype)
    matrix = torch.diag_embed(sign / scale[:, None]) @ rotation
    offset = -(matrix @ shift.flip(1)[..., None])
    # grid_sample uses -1 to 1 along each axis.
    theta = torch.cat([matrix * half, offset], dim=2) / half[:, None]
    slices = image.flatten(1, 2)
    grid = F.affine_grid(theta, list(slices.shape), align_corners=False)
    resampled = F.grid_sample(slices, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return resampled.reshape(image.shape)


def _resample_across(image: torch.Tensor, flip: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    depth = image.shape[2]
    index = torch.arange(depth, device=image.device, dtype=image.dtype)
    center = (depth - 1) / 2
    sign = 1 - 2 * flip.to(image.dtype)
    source = (index - center - shift[:, None]) * (sign / scale)[:, None] + center
    distance = (source.clamp(0, depth - 1)[:, :, None] - index).abs()
    weights = (1 - distance).clamp(min=0)  # (N, to, from)
    return torch.matmul(weights[:, None], image.flatten(3)).reshape(image.shape)


def _mean_of_three(image: torch.Tensor, axis: int, step: int = 1) -> torch.Tensor:
    """Mean of each voxel and its two neighbors ``step`` voxels away; beyond the border, of the voxel itself."""
    total, rest = image.clone(), image.shape[axis] - step
    for start in (0, step):
        total.narrow(axis, step - start, rest).add_(image.narrow(axis, start, rest))
        border = 0 if start == 0 else rest
        total.narrow(axis, border, step).add_(image.narrow(axis, border, step))
    return total.div_(3)


@dataclass(eq=False)
class RandAugmentCandidates(RandomizableTrait):
    """Flips, shifts, scales and rotates candidates, and adds an offset and noise (chapter 12.6); changes the scanner.

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
        stretch: largest change of size along z alone, beside ``scale``: slices further apart or closer.
        sharpen: how far a reconstruction kernel may differ: 1 is from the mean over 3 x 3 voxels of a slice to as
            much sharper.
        thicken: largest share that a slice takes of each of its neighbors, below 0.5.
        correlated: whether noise has the texture of a scanner: for each candidate a mixture of white noise, of coarse
            noise and of streaks along x.
        hu_range: what the result is clipped to, in HU.
    """

    flip: bool = True
    shift: float = 0.0
    scale: float = 0.0
    rotate: float = 0.0
    offset: float = 0.0
    noise: float = 0.0
    stretch: float = 0.0
    sharpen: float = 0.0
    thicken: float = 0.0
    correlated: bool = False
    hu_range: tuple[float, float] = (-1000.0, 1000.0)

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            image: float (N, C, D, H, W), in HU.

        Returns:
            A batch of the same shape, type and strides.
        """
        given = image
        if self.shift or self.scale or self.rotate or self.stretch:
            image = self._resample(image)
        elif self.flip:
            image = self._flip(image)
        if self.sharpen:
            image = torch.lerp(image, _mean_of_three(_mean_of_three(image, 3), 4), self._uniform(image, self.sharpen))
        if self.thicken:
            image = torch.lerp(image, _mean_of_three(image, 2), 3 * self._uniform(image, self.thicken).abs())
        if self.offset or self.noise:
            change = self._uniform(image, self.offset)
            if self.noise:
                deviation = self._uniform(image, self.noise).abs()
                change = self._noise(image).mul_(deviation).add_(change)
            image = image + change
        # A batch of one channel is contiguous in both layouts, but a GPU picks its kernels by the strides: batch
        # normalization gives a channel a single block of threads where they are not those of channels_last_3d.
        return torch.clamp(image, *self.hu_range, out=torch.empty_like(given))

    def _uniform(self, image: torch.Tensor, largest: float, *shape: int) -> torch.Tensor:
        shape = shape or (1,) * (image.dim() - 1)
        return (torch.rand((len(image), *shape), device=image.device, dtype=image.dtype) * 2 - 1) * largest

    def _noise(self, image: torch.Tensor) -> torch.Tensor:
        white = torch.randn_like(image)
        if not self.correlated:
            return white
        # Each part has about unit variance, and so has their mixture.
        shares = torch.stack([self._uniform(image, 1.0).abs() ** power for power in (1, 1, 3)]) + 1e-3
        shares = shares / shares.square().sum(dim=0).sqrt()
        # Noise of another place is as good as new, and costs less.
        coarse = _mean_of_three(_mean_of_three(white.flip(2), 3), 4).mul_(3)
        streaks = _mean_of_three(_mean_of_three(white.flip(3), 4), 4, step=3).mul_(3)
        return white.mul_(shares[0]).addcmul_(coarse, shares[1]).addcmul_(streaks, shares[2])

    def _flip(self, image: torch.Tensor) -> torch.Tensor:
        for axis in (2, 3, 4):
            chosen = torch.rand(len(image), device=image.device) < 0.5
            image = torch.where(chosen[:, None, None, None, None], image.flip(axis), image)
        return image

    def _resample(self, image: torch.Tensor) -> torch.Tensor:
        flip = torch.rand((len(image), 3), device=image.device, dtype=image.dtype) < (0.5 if self.flip else 0.0)
        return resample_candidates(
            image,
            flip=flip,
            scale=1 + self._uniform(image, self.scale, 1)[:, 0],
            rotate=self._uniform(image, self.rotate, 1)[:, 0],
            shift=self._uniform(image, self.shift, 3),
            stretch=1 + self._uniform(image, self.stretch, 1)[:, 0] if self.stretch else None,
        )
