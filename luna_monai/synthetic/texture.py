"""Noise of the scanner and texture of the lung, as periodic blocks of voxels."""

from __future__ import annotations

import numpy as np
from scipy import fft

from luna_monai.synthetic.sampling import FloatArray

_TILE = (40, 192, 192)


def _frequencies(step: tuple[float, float, float]) -> tuple[FloatArray, FloatArray]:
    """In-plane and axial frequencies of a tile's real FFT, cycles per mm, for voxels of ``step`` (x, y, z) mm."""
    z, y = fft.fftfreq(_TILE[0], abs(step[2])), fft.fftfreq(_TILE[1], abs(step[1]))
    x = fft.rfftfreq(_TILE[2], abs(step[0]))
    in_plane = np.sqrt(y[None, :, None] ** 2 + x[None, None, :] ** 2)
    return in_plane.astype(np.float32), np.abs(z)[:, None, None].astype(np.float32)


def _filtered(rng: np.random.Generator, gain: FloatArray) -> FloatArray:
    """Draw white noise, filter it and bring it to unit variance."""
    white = rng.standard_normal(_TILE, dtype=np.float32)
    noise = fft.irfftn(fft.rfftn(white) * gain, s=_TILE)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def scanner_noise(
    rng: np.random.Generator, step: tuple[float, float, float], cutoff: float, thickness: float
) -> FloatArray:
    """Draw noise as filtered back-projection leaves it.

    The power grows with the frequency, as the ramp filter has it, until the kernel cuts it off (Riederer, Pelc and
    Chesler, Physics in Medicine and Biology 23, 1978); part of it is broad, from scatter and beam hardening.

    Args:
        rng: source of randomness.
        step: distance of voxels (x, y, z), mm.
        cutoff: where the kernel cuts off, cycles per mm.
        thickness: of the slices, mm.

    Returns:
        Periodic noise of unit variance (z, y, x).
    """
    in_plane, axial = _frequencies(step)
    power = (in_plane + 0.15 * np.float32(cutoff)) * np.exp(-((in_plane / np.float32(cutoff)) ** 2))
    along = np.exp(-((axial * np.float32(0.8 * thickness)) ** 2))
    return _filtered(rng, np.sqrt(power) * along)


def lung_texture(
    rng: np.random.Generator, step: tuple[float, float, float], fine_hu: float, coarse_hu: float, emphysema: float
) -> FloatArray:
    """Draw the texture of the parenchyma: small vessels below resolution, lobules, and holes of emphysema.

    Args:
        rng: source of randomness.
        step: distance of voxels (x, y, z), mm.
        fine_hu: standard deviation of what is about 2 mm large, HU.
        coarse_hu: standard deviation of what is about 10 mm large, HU.
        emphysema: severity, 0 for none to 1.

    Returns:
        Periodic deviation from the mean (z, y, x), HU.
    """
    in_plane, axial = _frequencies(step)
    squared = in_plane**2 + axial**2
    texture = np.float32(fine_hu) * _filtered(rng, np.exp(-squared * np.float32(2.0)))
    texture += np.float32(coarse_hu) * _filtered(rng, np.exp(-squared * np.float32(70.0)))
    if emphysema > 0:
        holes = _filtered(rng, np.exp(-squared * np.float32(35.0)))
        texture -= np.float32(75) * np.clip((holes - np.float32(1.6 - 1.6 * emphysema)) * 2, 0, 1)
    return texture
