"""Composition of voxels from air, lung, soft tissue, bone, vessels and airways, and the noise of the scanner."""

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from luna_monai.synthetic.painting import share_inside, tile_slices
from luna_monai.synthetic.sampling import FloatArray, SliceSampler, Vector, smooth_noise
from luna_monai.synthetic.setting import Setting
from luna_monai.synthetic.vessels import Tubes

_TILE = (40, 192, 192)


def _frequencies(step: Vector) -> tuple[FloatArray, FloatArray]:
    """Return in-plane and axial frequencies of the real FFT of a tile, cycles per mm; ``step`` is (x, y, z) in mm."""
    z, y = fft.fftfreq(_TILE[0], abs(step[2])), fft.fftfreq(_TILE[1], abs(step[1]))
    x = fft.rfftfreq(_TILE[2], abs(step[0]))
    in_plane = np.sqrt(y[None, :, None] ** 2 + x[None, None, :] ** 2)
    return in_plane.astype(np.float32), np.abs(z)[:, None, None].astype(np.float32)


def _filtered(rng: np.random.Generator, gain: FloatArray) -> FloatArray:
    """Draw white noise, filter it and scale it to unit variance."""
    noise = fft.irfftn(fft.rfftn(rng.standard_normal(_TILE, dtype=np.float32)) * gain, s=_TILE)
    return np.asarray(noise / noise.std(), dtype=np.float32)


def scanner_noise(
    rng: np.random.Generator, step: Vector, cutoff: float, thickness: float, streaks: float = 0.0
) -> FloatArray:
    """Draw noise with the spectrum of filtered back-projection.

    The power increases with the frequency because of the ramp filter, up to the cutoff of the kernel (Riederer, Pelc
    and Chesler, Physics in Medicine and Biology 23, 1978). A broad part represents scatter and beam hardening.

    Args:
        rng: random number generator.
        step: distance between voxels (x, y, z), mm.
        cutoff: cutoff frequency of the kernel, cycles per mm.
        thickness: thickness of the slices, mm.
        streaks: relative strength of additional noise in streaks along x, as with strong absorption of photons.

    Returns:
        Periodic noise of unit variance (z, y, x).
    """
    in_plane, axial = _frequencies(step)
    power = (in_plane + 0.15 * np.float32(cutoff)) * np.exp(-((in_plane / np.float32(cutoff)) ** 2))
    gain = np.sqrt(power) * np.exp(-((axial * np.float32(0.8 * thickness)) ** 2))
    if streaks > 0:
        across = np.abs(fft.rfftfreq(_TILE[2], abs(step[0])))[None, None, :].astype(np.float32)
        gain = gain * (1 + np.float32(streaks) * np.exp(-((across / np.float32(0.04)) ** 2)))
    return _filtered(rng, gain)


def lung_texture(
    rng: np.random.Generator, step: Vector, fine_hu: float, coarse_hu: float, emphysema: float
) -> FloatArray:
    """Draw the texture of the parenchyma: vessels below the resolution, lobules, and holes of emphysema.

    Args:
        rng: random number generator.
        step: distance between voxels (x, y, z), mm.
        fine_hu: standard deviation of the texture with a size of about 2 mm, HU.
        coarse_hu: standard deviation of the texture with a size of about 10 mm, HU.
        emphysema: severity of emphysema, from 0 (none) to 1.

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


def compose(rng: np.random.Generator, setting: Setting, tubes: Tubes) -> FloatArray:
    """Compose a volume of air, lung, soft tissue, bone, vessels and airways.

    Args:
        rng: random number generator.
        setting: the setting of the scan.
        tubes: vessels and airways.

    Returns:
        HU of the fine voxels (z, y, x), without noise.
    """
    thorax, body, grid = setting.thorax, setting.thorax.body, setting.fine
    sigma = np.float32(setting.acquisition.sigma)
    sampler = SliceSampler(thorax.grid, grid)
    y, x = np.meshgrid(grid.axis(1).astype(np.float32), grid.axis(0).astype(np.float32), indexing="ij")
    z_axis, down = grid.axis(2), setting.acquisition.direction[1]
    mean_hu, gradient = rng.uniform(-895, -810), rng.uniform(0.25, 1.2)
    gravity = (mean_hu + down * gradient * y).ravel()
    dependent = np.float32(rng.uniform(0, 160)) * np.clip(down * y / body.depth, 0, 1).ravel()
    emphysema = float(rng.uniform(0.1, 0.9)) if rng.random() < 0.2 else 0.0
    tile = lung_texture(rng, grid.step, float(rng.uniform(8, 22)), float(rng.uniform(6, 18)), emphysema)
    fissures, fissure_hu = _fissures(rng, body.height, y, x), float(rng.uniform(40, 220))
    marrow, cortex = np.float32(rng.uniform(120, 280)), np.float32(rng.uniform(450, 900))
    wall_hu, blood_hu = np.float32(rng.uniform(-20, 40)), np.float32(body.contrast_hu)
    table = _table(rng, setting)

    volume = np.empty(grid.shape, dtype=np.float32)
    for z, texture in enumerate(tile_slices(tile, grid.shape)):
        distance = sampler.slice(thorax.lung, z).ravel()
        hu = volume[z].reshape(-1)
        np.maximum(sampler.slice(thorax.soft_hu, z).ravel(), table.ravel(), out=hu)

        where = np.flatnonzero(distance < 2.5 * sigma)
        depth = distance[where]
        lung = gravity[where] + texture.ravel()[where]
        lung += dependent[where] * np.exp(np.clip(depth, -60, 0) / 9)
        for height, slope, allowed in fissures:
            rise = np.float32(z_axis[z]) - height[where]
            part = np.flatnonzero((np.abs(rise) < 3 * np.hypot(1, slope)) & allowed[where])
            squared = (rise[part] / np.float32(np.hypot(1, slope) * (0.35 + sigma))) ** 2
            lung[part] += np.float32(fissure_hu) * np.exp(-0.5 * squared)
        hu[where] += (np.maximum(lung, -995) - hu[where]) * share_inside(depth, float(sigma))

        bone = sampler.slice(thorax.bone, z).ravel()
        where = np.flatnonzero(bone < 2)
        near_bone = bone[where]
        bone_hu = marrow + cortex * np.exp(-(((near_bone + np.float32(1.0)) / np.float32(1.1)) ** 2))
        hu[where] += (bone_hu - hu[where]) * share_inside(near_bone, float(sigma) + 0.2)

        for share, tissue_hu in ((tubes.blood[z].ravel(), blood_hu), (tubes.airway_walls[z].ravel(), wall_hu)):
            where = np.flatnonzero(share)
            hu[where] += np.maximum(tissue_hu - hu[where], 0) * share[where]
        share = tubes.airway_lumen[z].ravel()
        where = np.flatnonzero(share)
        hu[where] += (np.float32(-985) - hu[where]) * share[where]
    return volume


def _fissures(
    rng: np.random.Generator, lung_height: float, y: FloatArray, x: FloatArray
) -> list[tuple[FloatArray, float, NDArray[np.bool_]]]:
    """Return for each fissure the height at each (y, x), mm, the slope, and a mask (y, x) where it exists."""
    result = []
    for side in (-1.0, 1.0):
        slope = rng.uniform(0.7, 1.2)
        bend = 7 * smooth_noise(rng, (1, *y.shape), (1, 4, 4))[0]
        oblique = rng.uniform(0.36, 0.46) * lung_height + slope * y + bend
        result.append((oblique.ravel(), slope, (np.sign(x) == side).ravel()))
        if side < 0 and rng.random() < 0.8:
            bend = 8 * smooth_noise(rng, (1, *y.shape), (1, 3, 3))[0]
            horizontal = rng.uniform(0.44, 0.54) * lung_height + 0.15 * (y + 30) + bend
            result.append((horizontal.ravel(), 0.15, ((np.sign(x) == side) & (oblique < horizontal)).ravel()))
    return result


def _table(rng: np.random.Generator, setting: Setting) -> FloatArray:
    """Return HU (y, x) of the table below the patient; very low values elsewhere."""
    # The table is in the direction of gravity, for both patient positions.
    body, down = setting.thorax.body, setting.acquisition.direction[1]
    y, x = down * setting.fine.axis(1)[:, None], setting.fine.axis(0)[None, :]
    top = body.depth + 27 + 0.8 * body.fat + 8 * down + rng.uniform(6, 14) - x**2 * rng.uniform(0.0004, 0.0012)
    bottom = top + rng.uniform(22, 40)
    hu = np.full((y.shape[0], x.shape[1]), -3000.0)
    for surface, strength in ((top, rng.uniform(-600, -100)), (bottom, rng.uniform(-300, 150))):
        hu = np.maximum(hu, strength - (strength + 1000) * (np.abs(y - surface) / 2.2) ** 2)
    return np.where((y > top - 5) & (hu > -1000), hu, -3000).astype(np.float32)


def scan_volume(rng: np.random.Generator, setting: Setting, volume: FloatArray) -> NDArray[np.int16]:
    """Average fine slices, add noise, and round to integers.

    Args:
        rng: random number generator.
        setting: the setting of the scan.
        volume: HU of the fine voxels (z, y, x), without noise.

    Returns:
        HU of the finished scan (z, y, x), int16.
    """
    acquisition = setting.acquisition
    fine = acquisition.oversampling
    if fine == 2 or acquisition.thick_slices:
        # The slice profile overlaps with the neighboring slices.
        kernel = (0.15, 0.7, 0.15) if fine == 2 else (0.25, 0.5, 0.25)
        volume = ndimage.convolve1d(volume, np.asarray(kernel, dtype=np.float32), axis=0, mode="nearest")
    thickness = max(acquisition.spacing[2], 1.0) * (1.6 if acquisition.thick_slices else 1.0)
    tile = scanner_noise(rng, acquisition.spacing, acquisition.noise_cutoff, thickness, acquisition.streaks)
    z_axis, height = setting.slices.axis(2), setting.thorax.body.height
    radius = np.hypot(*np.ogrid[-1 : 1 : acquisition.shape[1] * 1j, -1 : 1 : acquisition.shape[2] * 1j])
    outside = np.nonzero((radius > 1) & setting.whole_thorax)
    lowest = acquisition.padding_hu if setting.whole_thorax else -1024
    voxels = np.empty(acquisition.shape, dtype=np.int16)
    for z, noise in enumerate(tile_slices(tile, acquisition.shape)):
        hu = volume[z * fine : (z + 1) * fine].mean(axis=0) if fine > 1 else volume[z]
        if acquisition.overshoot:
            hu = hu + acquisition.overshoot * (hu - ndimage.gaussian_filter(hu, 0.8 / acquisition.spacing[0]))
        shoulders = 1 + 1.2 * np.clip(z_axis[z] / height - 0.85, 0, 0.4)
        amount = np.float32(acquisition.noise_hu * shoulders) * (0.65 + 0.35 * np.clip((hu + 900) / 800, 0, 1))
        hu = np.rint(hu + amount * noise)
        hu[outside] = lowest
        voxels[z] = np.clip(hu, lowest, 3071)
    return voxels
