"""Generation of one synthetic scan."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from luna_monai.synthetic.candidates import choose_candidates, collect_places, paint_nodules
from luna_monai.synthetic.lookalikes import paint_lookalikes
from luna_monai.synthetic.painting import Canvas
from luna_monai.synthetic.sampling import Points, Vector
from luna_monai.synthetic.setting import draw_setting
from luna_monai.synthetic.tissue import compose, scan_volume
from luna_monai.synthetic.vessels import draw_tubes


@dataclass(frozen=True)
class ScanOptions:
    """Options of a scan.

    Args:
        in_plane: number of voxels along x and along y.
        slices: number of voxels along z; None covers the whole thorax.
        candidates: number of candidates.
        nodules: mean number of nodules.
    """

    in_plane: int
    slices: int | None
    candidates: int
    nodules: float


@dataclass(frozen=True)
class SyntheticScan:
    """A scan with its annotations. World coordinates are LPS (x, y, z), mm.

    Args:
        voxels: HU, int16 (z, y, x).
        spacing: distance between voxels along (x, y, z), mm.
        origin: world position of the first voxel.
        direction: signs of the x, y and z axes.
        annotations: nodules (n, 4): world position and diameter, mm.
        excluded: other findings (n, 4): world position and diameter, mm; -1 for an unknown diameter.
        candidates: candidates (n, 4): world position, and class, 1 for a nodule and 0 otherwise.
    """

    voxels: NDArray[np.int16]
    spacing: Vector
    origin: Vector
    direction: Vector
    annotations: Points
    excluded: Points
    candidates: Points


def generate_scan(seed: np.random.SeedSequence, options: ScanOptions) -> SyntheticScan:
    """Generate a scan.

    Args:
        seed: random seed.
        options: size of the scan, and numbers of candidates and nodules.

    Returns:
        The scan. The same seed and options produce the same bytes on one type of processor.
    """
    # The last bits of a matrix product may depend on the number of threads.
    with threadpool_limits(limits=1, user_api="blas"):
        rng = np.random.default_rng(seed)
        setting = draw_setting(rng, options.in_plane, options.slices)
        acquisition, thorax = setting.acquisition, setting.thorax
        tubes = draw_tubes(rng, setting)
        volume = compose(rng, setting, tubes)
        places = collect_places(rng, setting, tubes)
        canvas = Canvas(volume, setting.fine, acquisition.sigma)
        in_view = float(np.mean(setting.fine.contains(thorax.grid.points_where(thorax.lung < 0))))
        # Parts of a lung show more that looks like a nodule than most patients have, for training.
        amount = in_view * (rng.uniform(0.1, 0.9) if setting.whole_thorax else 1.0)
        findings = places["finding"] = paint_lookalikes(rng, canvas, thorax, places, amount)
        nodules, other = paint_nodules(rng, setting, canvas, places, options.nodules, in_view)
        candidates = choose_candidates(rng, setting, places, options.candidates, nodules, other)
        excluded = np.concatenate([other, np.column_stack([findings, np.full(len(findings), -1.0)])])
        return SyntheticScan(
            voxels=scan_volume(rng, setting, volume),
            spacing=acquisition.spacing,
            origin=tuple(setting.to_world(np.array([setting.slices.start]))[0].tolist()),
            direction=acquisition.direction,
            annotations=setting.to_world(nodules),
            excluded=setting.to_world(excluded[setting.slices.contains(excluded[:, :3])]),
            candidates=setting.to_world(candidates),
        )
