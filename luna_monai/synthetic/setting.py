"""Setting of one scan: the patient, the acquisition (as in LUNA16), and the positions of the voxels."""

from dataclasses import dataclass

import numpy as np

from luna_monai.synthetic.anatomy import Thorax, build_thorax, draw_body
from luna_monai.synthetic.sampling import Grid, Points, Vector

# Measured on the 888 headers of LUNA16. In-plane spacing is the field of view divided by 512: 0.46 to 0.98 mm, median
# 0.70 mm.
_FIELD_OF_VIEW_MM = np.array([270, 290, 300, 320, 340, 350, 360, 380, 400, 420, 440, 460, 480], dtype=np.float64)
_FIELD_OF_VIEW_SHARE = np.array([3, 5, 11, 15, 13, 5, 21, 10, 9, 4, 2, 1, 1], dtype=np.float64)
# Slice spacings, and how often they occur.
_SLICE_SPACING_MM = np.array([0.5, 0.625, 0.7, 0.75, 1.0, 1.25, 1.7999999523162842, 2.0, 2.5])
_SLICE_SPACING_SHARE = np.array([12, 130, 30, 5, 108, 220, 67, 35, 281], dtype=np.float64)
# Length of the scan along z: 231 to 385 mm (1st and 99th percentile), median 318 mm.
_COVERAGE_MM = (318.0, 32.0)
# World coordinates of the volume's center: x is close to 0; y is close to 0 in 83 %, and near -160 mm in 17 %, where it
# includes the height of the table. The lowest slice is near -337 mm, with wide tails.
_CENTER_X_MM = (-0.4, 11.0)
_CENTER_Y_MM = ((0.0, 14.0), (-160.0, 22.0))
_CENTER_Y_SHIFTED_SHARE = 0.17
_FIRST_SLICE_MM = (-337.0, 60.0)
# 14 of 888 scans have the direction cosines -1 0 0 0 -1 0 0 0 1: patients in prone position.
_FLIPPED_SHARE = 14 / 888


@dataclass(frozen=True)
class Acquisition:
    """Grid and image quality of a scan.

    Args:
        shape: number of voxels along (z, y, x).
        spacing: distance between voxels along (x, y, z), mm.
        center: world position of the center of the full scan, LPS (x, y, z), mm.
        flipped: whether the x and y axes point from left to right and from posterior to anterior.
        oversampling: number of fine slices that are averaged to one slice, which causes partial-volume effects.
        sigma: standard deviation of the in-plane point spread function, mm.
        noise_hu: standard deviation of the noise in soft tissue, HU.
        noise_cutoff: cutoff frequency of the noise, given by the reconstruction kernel, cycles per mm.
        streaks: strength of additional streak noise along x, as at low dose; 0 for none.
        overshoot: strength of edge enhancement by a sharp kernel; 0 for none.
        thick_slices: whether slices are thicker than their spacing, so that neighboring slices overlap.
        padding_hu: value outside the reconstruction circle, HU.
    """

    shape: tuple[int, int, int]
    spacing: Vector
    center: Vector
    flipped: bool
    oversampling: int
    sigma: float
    noise_hu: float
    noise_cutoff: float
    streaks: float
    overshoot: float
    thick_slices: bool
    padding_hu: int

    @property
    def direction(self) -> Vector:
        """Signs of the x, y and z axes: the diagonal of the direction cosines."""
        return (-1.0, -1.0, 1.0) if self.flipped else (1.0, 1.0, 1.0)


def draw_acquisition(rng: np.random.Generator, in_plane: int, slices: int | None) -> Acquisition:
    """Draw the grid and image quality of a scan from the distributions of LUNA16.

    Args:
        rng: random number generator.
        in_plane: number of voxels along x and along y.
        slices: number of voxels along z; None covers the whole thorax.

    Returns:
        The acquisition.
    """
    in_plane_spacing = float(rng.choice(_FIELD_OF_VIEW_MM, p=_FIELD_OF_VIEW_SHARE / _FIELD_OF_VIEW_SHARE.sum())) / 512
    slice_spacing = float(rng.choice(_SLICE_SPACING_MM, p=_SLICE_SPACING_SHARE / _SLICE_SPACING_SHARE.sum()))
    coverage = float(np.clip(rng.normal(*_COVERAGE_MM), 231, 385))
    center_y = _CENTER_Y_MM[int(rng.random() < _CENTER_Y_SHIFTED_SHARE)]
    sharp = rng.random() < 0.35
    # Thin slices and sharp kernels increase the noise.
    noise = rng.lognormal(np.log(20.0), 0.6) * (1.25 / max(slice_spacing, 0.8)) ** 0.5 * (2.2 if sharp else 1.0)
    return Acquisition(
        shape=(slices or round(coverage / slice_spacing), in_plane, in_plane),
        spacing=(in_plane_spacing, in_plane_spacing, slice_spacing),
        center=(rng.normal(*_CENTER_X_MM), rng.normal(*center_y), rng.normal(*_FIRST_SLICE_MM) + coverage / 2),
        flipped=bool(rng.random() < _FLIPPED_SHARE),
        oversampling=2 if slice_spacing > 1.3 else 1,
        sigma=float(rng.uniform(0.35, 0.5) if sharp else rng.uniform(0.45, 0.7)),
        noise_hu=float(np.clip(noise, 6, 110)),
        noise_cutoff=float(rng.uniform(0.55, 0.8) if sharp else rng.uniform(0.28, 0.45)),
        streaks=float(rng.uniform(1, 8)) if rng.random() < 0.3 else 0.0,
        overshoot=float(rng.uniform(0.1, 0.9)) if sharp else 0.0,
        thick_slices=bool(slice_spacing < 1.8 and rng.random() < 0.5),
        padding_hu=int(rng.choice([-2048, -2000, -1024])),
    )


_COARSE_MM = 3.0
# From this size on, the field of view contains the whole thorax; smaller scans show a part of a lung.
_WHOLE_THORAX_VOXELS = 400


@dataclass(frozen=True)
class Setting:
    """Setting of a scan.

    Args:
        acquisition: grid and image quality.
        center: position of the volume's center in the patient (x, y, z), mm.
        slices: the voxels of the finished scan.
        fine: the voxels to paint: those of ``slices``, or several thinner slices for each.
        thorax: the anatomy.
    """

    acquisition: Acquisition
    center: Vector
    slices: Grid
    fine: Grid
    thorax: Thorax

    @property
    def whole_thorax(self) -> bool:
        """Whether the field of view is a circle with the whole body, instead of a part of a lung."""
        return self.acquisition.shape[2] >= _WHOLE_THORAX_VOXELS

    def to_world(self, rows: Points) -> Points:
        """Convert positions in the first three columns (n, 3 or more) from patient to world coordinates, mm."""
        moved = rows.copy()
        moved[:, :3] += np.asarray(self.acquisition.center) - np.asarray(self.center)
        return moved


def draw_setting(rng: np.random.Generator, in_plane: int, slices: int | None) -> Setting:
    """Draw a patient and the setting of a scan.

    Args:
        rng: random number generator.
        in_plane: number of voxels along x and along y.
        slices: number of voxels along z; None covers the whole thorax.

    Returns:
        The setting.
    """
    acquisition = draw_acquisition(rng, in_plane, slices)
    body = draw_body(rng)
    if in_plane >= _WHOLE_THORAX_VOXELS:
        x, y = rng.normal(0, 6), rng.normal(8, 8)
    else:
        x = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.75) * body.width
        y = rng.uniform(-0.55, 0.6) * body.depth
    z = body.height / 2 + rng.uniform(-20, 15)
    if slices is not None:
        z = rng.uniform(0.2, 0.8) * body.height
    center = (x, y, z)
    fine = _voxel_grid(acquisition, center, acquisition.oversampling)
    # The anatomy covers the voxels in whole steps, and both lungs completely, because vessels fill them.
    low, high = fine.box[0] - _COARSE_MM, fine.box[1] + _COARSE_MM
    high = low + _COARSE_MM * np.ceil((high - low) / _COARSE_MM)
    low = np.minimum(low, [-body.width - 12, -body.depth - 12, -12])
    high = np.maximum(high, [body.width + 12, body.depth + 26, body.height + 8])
    thorax = build_thorax(rng, body, Grid.covering(low, high, _COARSE_MM))
    return Setting(acquisition, center, _voxel_grid(acquisition, center, 1), fine, thorax)


def _voxel_grid(acquisition: Acquisition, center: Vector, oversampling: int) -> Grid:
    """Return the voxel grid of a scan, with slices that are thinner by the factor ``oversampling``."""
    spacing, sign = acquisition.spacing, acquisition.direction
    shape = (acquisition.shape[0] * oversampling, *acquisition.shape[1:])
    step = (sign[0] * spacing[0], sign[1] * spacing[1], spacing[2] / oversampling)
    return Grid(tuple(c - s * (n - 1) / 2 for c, s, n in zip(center, step, shape[::-1], strict=True)), step, shape)
