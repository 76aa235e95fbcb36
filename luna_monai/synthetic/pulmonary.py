"""The lungs' vessels and airways in one scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from luna_monai.synthetic.painting import paint_tubes, tube_profile
from luna_monai.synthetic.sampling import FloatArray
from luna_monai.synthetic.setting import Setting
from luna_monai.synthetic.vessels import Branches, airways_beside, grow_tree, join


@dataclass(frozen=True)
class Tubes:
    """Vessels and airways, as branches and as shares of the fine voxels (z, y, x) that they fill.

    Args:
        vessels: arteries and veins of both lungs.
        airways: airways beside the larger arteries.
        blood: share of each voxel that vessels fill.
        airway_walls: share that airways with their walls fill.
        airway_lumen: share that the air in them fills.
    """

    vessels: Branches
    airways: Branches
    blood: FloatArray
    airway_walls: FloatArray
    airway_lumen: FloatArray


def draw_tubes(rng: np.random.Generator, setting: Setting) -> Tubes:
    """Grow and paint the vessels and airways of both lungs.

    Args:
        rng: source of randomness.
        setting: the scan's frame.

    Returns:
        The vessels and airways.
    """
    vessels, airways = _grow(rng, setting)
    blood, walls, lumen = (np.zeros(setting.fine.shape, dtype=np.float32) for _ in range(3))
    sigma, profile, grid = setting.acquisition.sigma, tube_profile(), setting.fine
    points, radii, _ = vessels.sample(0.7)
    paint_tubes(blood, grid, points, np.minimum(radii, 7.0), sigma, profile)
    everything = join([airways, _central_airways(setting.body.height)])
    points, radii, branch = everything.sample(0.7)
    paint_tubes(walls, grid, points, 1.12 * radii + 0.25, sigma, profile)
    # Mucus fills a few airways.
    plugged = (rng.random(len(everything.leaves)) < 0.04) & (everything.leaves > 1)
    open_points = ~plugged[branch]
    paint_tubes(lumen, grid, points[open_points], radii[open_points], sigma, profile)
    return Tubes(vessels, airways, blood, walls, lumen)


def _grow(rng: np.random.Generator, setting: Setting) -> tuple[Branches, Branches]:
    """Grow arteries and veins from both hila, and airways beside the arteries."""
    body, thorax = setting.body, setting.thorax
    inner = thorax.grid.points_where(thorax.lung < -4)
    leaf_radius, exponent = float(rng.uniform(0.36, 0.50)), float(rng.uniform(2.7, 3.1))
    volume_per_leaf = float(rng.uniform(450, 900))
    blood, airways = [], []
    for side in (-1.0, 1.0):
        points = inner[np.sign(inner[:, 0]) == side]
        count = max(int(len(points) * thorax.grid.step**3 / volume_per_leaf), 2)
        roots = (
            np.array([side * 30, 0, 0.55 * body.height]),
            np.array([side * 24, -9, 0.47 * body.height]),
        )
        trees = []
        for root in roots:
            leaves = points[rng.integers(0, len(points), count)] + rng.uniform(-1.2, 1.2, (count, 3))
            trees.append(grow_tree(rng, root, leaves, leaf_radius, exponent))
        blood += trees
        airway_leaf_radius = leaf_radius * float(rng.uniform(0.75, 0.95))
        airways.append(airways_beside(trees[0].where(trees[0].leaves >= 90), airway_leaf_radius, exponent))
    return join(blood), join(airways)


def _central_airways(height: float) -> Branches:
    """Trachea and main bronchi, for lungs of ``height`` mm."""
    carina = np.array([0.0, 4.0, 0.62 * height])
    start = np.array([[0.0, -4.0, 1.25 * height], carina, carina])
    end = np.array([carina, [-36.0, 6.0, 0.55 * height], [36.0, 8.0, 0.55 * height]])
    radius = np.array([8.5, 6.3, 5.8])
    return Branches(start, end, np.zeros((3, 3)), radius, radius * [1, 0.9, 0.9], np.ones(3, dtype=np.int64))
