"""The frame of one scan: who is scanned, how, and where the voxels lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_monai.synthetic.acquisition import Acquisition, draw_acquisition
from luna_monai.synthetic.anatomy import Body, Thorax, build_thorax, draw_body
from luna_monai.synthetic.sampling import CoarseGrid, VoxelGrid

_COARSE_MM = 3.0
# A whole thorax fits into the field of view from here on; smaller ones are targeted on a part of a lung.
_WHOLE_THORAX_VOXELS = 400


@dataclass(frozen=True)
class Setting:
    """One scan's frame.

    Args:
        acquisition: grid and image quality.
        body: the patient's proportions.
        center: position of the volume's centre in the patient (x, y, z), mm.
        slices: the voxels of the finished scan.
        fine: the voxels to paint: as ``slices``, or several thinner ones for each.
        thorax: the anatomy.
    """

    acquisition: Acquisition
    body: Body
    center: tuple[float, float, float]
    slices: VoxelGrid
    fine: VoxelGrid
    thorax: Thorax

    @property
    def whole_thorax(self) -> bool:
        """Whether the field of view holds the whole body, as a circle, instead of a part of a lung."""
        return self.acquisition.shape[2] >= _WHOLE_THORAX_VOXELS

    def to_world(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move the positions in the first three columns (n, 3 or more) from the patient's mm to world coordinates."""
        moved = rows.copy()
        moved[:, :3] += np.asarray(self.acquisition.center) - np.asarray(self.center)
        return moved


def draw_setting(rng: np.random.Generator, in_plane: int, slices: int | None) -> Setting:
    """Draw a patient and a scan's frame.

    Args:
        rng: source of randomness.
        in_plane: voxels along x and along y.
        slices: voxels along z; as many as the whole thorax needs when None.

    Returns:
        The frame.
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
    center = (float(x), float(y), float(z))
    fine = _voxel_grid(acquisition, center, acquisition.oversampling)
    thorax = build_thorax(rng, body, _coarse_grid(fine, body))
    return Setting(acquisition, body, center, _voxel_grid(acquisition, center, 1), fine, thorax)


def _voxel_grid(acquisition: Acquisition, center: tuple[float, float, float], oversampling: int) -> VoxelGrid:
    spacing, sign = acquisition.spacing, acquisition.direction
    nz, ny, nx = acquisition.shape
    shape = (nz * oversampling, ny, nx)
    step = (sign[0] * spacing[0], sign[1] * spacing[1], spacing[2] / oversampling)
    x, y, z = (c - s * (n - 1) / 2 for c, s, n in zip(center, step, shape[::-1], strict=True))
    return VoxelGrid((x, y, z), step, shape)


def _coarse_grid(voxels: VoxelGrid, body: Body) -> CoarseGrid:
    """Cover the voxels, and the whole lungs because vessels grow from what they supply."""
    covered = voxels.coarse(_COARSE_MM)
    low = np.minimum(covered.start, [-body.width - 12, -body.depth - 12, -12])
    ends = np.asarray(covered.start) + _COARSE_MM * (np.asarray(covered.shape[::-1]) - 1)
    high = np.maximum(ends, [body.width + 12, body.depth + 26, body.height + 8])
    sizes = np.ceil((high - low) / _COARSE_MM).astype(int) + 1
    start = (float(low[0]), float(low[1]), float(low[2]))
    return CoarseGrid(start, _COARSE_MM, (int(sizes[2]), int(sizes[1]), int(sizes[0])))
