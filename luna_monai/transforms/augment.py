"""Augmentation of whole batches, on the device of the network."""

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
    """Flip, scale, rotate and shift each candidate of a batch about its center, in this order, in one resampling.

    Args:
        image: float (N, C, D, H, W); axes z, y, x.
        flip: bool (N, 3), whether to flip z, y and x.
        scale: (N,), factor by which structures become larger.
        rotate: (N,), angle in degrees in the plane of the slices, from the x axis towards the y axis.
        shift: (N, 3), shift in voxels along z, y and x, towards higher indices.
        stretch: (N,), additional factor along z; 1 if None.

    Returns:
        A batch of the same shape and type. Interpolation is trilinear; outside the image, border voxels are repeated.
    """
    # No transformation mixes z with x and y. Trilinear interpolation is therefore bilinear interpolation in the plane,
    # with one grid for all slices, followed by linear interpolation along z. This takes a sixth of the time.
    plane = _resample_plane(image, flip[:, 1:], scale, rotate, shift[:, 1:])
    return _resample_across(plane, flip[:, 0], scale if stretch is None else scale * stretch, shift[:, 0])


def _resample_plane(
    image: torch.Tensor, flip: torch.Tensor, scale: torch.Tensor, rotate: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    # x, y, in voxels. Created on the device, because a copy from the host waits for all pending work of the GPU.
    half = torch.stack([image.new_full((), size / 2) for size in image.shape[:-3:-1]])
    angle = torch.deg2rad(rotate)
    cos, sin = angle.cos(), angle.sin()
    # The inverse transformation, from output to input, in voxels from the center.
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
    weights = (1 - distance).clamp(min=0)  # (N, output slice, input slice)
    return torch.matmul(weights[:, None], image.flatten(3)).reshape(image.shape)


def _mean_of_three(image: torch.Tensor, axis: int, step: int = 1) -> torch.Tensor:
    """Average each voxel with its neighbors ``step`` voxels away; at the border, it replaces a missing neighbor."""
    total, rest = image.clone(), image.shape[axis] - step
    for start in (0, step):
        total.narrow(axis, step - start, rest).add_(image.narrow(axis, start, rest))
        border = 0 if start == 0 else rest
        total.narrow(axis, border, step).add_(image.narrow(axis, border, step))
    return total.div_(3)


@dataclass(eq=False)
class RandAugmentCandidates(RandomizableTrait):
    """Random flips, shifts, scaling, rotation, offset and noise (chapter 12.6), and variation of the scanner.

    Each candidate of a batch gets its own random values. All spatial changes are done in one trilinear resampling,
    which repeats border voxels outside the image. Random numbers come from torch's global generator of the batch's
    device.

    Args:
        flip: flip each axis with probability 1/2.
        shift: largest shift along each axis, in voxels.
        scale: largest change of size; 0.1 means factors from 0.9 to 1.1.
        rotate: largest rotation in the plane of the slices, in either direction, in degrees. There is no rotation out
            of the plane, because slices are further apart than the voxels of a slice.
        offset: largest offset, positive or negative, in HU.
        noise: largest standard deviation of Gaussian noise, in HU; that of each candidate is between 0 and this.
        stretch: largest additional change of size along z, which simulates another slice spacing.
        sharpen: largest change of sharpness, which simulates another reconstruction kernel. With 1, slices vary from
            their mean over 3 x 3 voxels to slices that are sharpened by the same amount.
        thicken: largest weight of each neighboring slice in a slice, below 0.5, which simulates thicker slices.
        correlated: whether noise has the texture of scanner noise: for each candidate, a random mixture of white
            noise, coarse noise and streaks along x.
        hu_range: range to which the result is clipped, in HU.
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
        # Keep the strides of the input. A batch with one channel is contiguous in both memory formats, but without the
        # strides of channels_last_3d, batch normalization on a GPU uses only a single block of threads.
        return torch.clamp(image, *self.hu_range, out=torch.empty_like(given))

    def _uniform(self, image: torch.Tensor, largest: float, *shape: int) -> torch.Tensor:
        shape = shape or (1,) * (image.dim() - 1)
        return (torch.rand((len(image), *shape), device=image.device, dtype=image.dtype) * 2 - 1) * largest

    def _noise(self, image: torch.Tensor) -> torch.Tensor:
        white = torch.randn_like(image)
        if not self.correlated:
            return white
        # Each part has about unit variance, and so does their mixture.
        shares = torch.stack([self._uniform(image, 1.0).abs() ** power for power in (1, 1, 3)]) + 1e-3
        shares = shares / shares.square().sum(dim=0).sqrt()
        # Flipped white noise replaces new random numbers, which would take longer to draw.
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
