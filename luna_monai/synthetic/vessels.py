"""Vessels and airways: growing trees that fill the lungs, and painting them.

The trees grow with the algorithm of Tawhai et al. for airways (Annals of Biomedical Engineering 28, 2000): a branch
grows towards the centroid of the points that it supplies, ends on the way, and divides the points between two children.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luna_monai.synthetic.painting import paint_tubes
from luna_monai.synthetic.sampling import FloatArray, Points
from luna_monai.synthetic.setting import Setting


@dataclass(frozen=True)
class Branches:
    """Branches of one or several trees.

    Args:
        start: start of each branch (n, 3), (x, y, z) in mm.
        end: end of each branch (n, 3), mm.
        bend: displacement of the middle of each branch from the straight line (n, 3), mm.
        start_radius: radius at the start (n,), mm.
        end_radius: radius at the end (n,), mm.
        leaves: number of leaves that each branch supplies (n,).
    """

    start: Points
    end: Points
    bend: Points
    start_radius: Points
    end_radius: Points
    leaves: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> Branches:
        """Return the branches that ``mask`` (n,) selects."""
        return Branches(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    def sample(self, step: float) -> tuple[Points, Points, NDArray[np.int64]]:
        """Sample points along all branches.

        Args:
            step: distance between samples on thin branches, mm; on thick branches it is half the radius.

        Returns:
            Positions (m, 3) and radii (m,) of the samples, mm, and the index of their branch (m,).
        """
        length = np.linalg.norm(self.end - self.start, axis=1)
        distance = np.maximum(step, 0.5 * np.minimum(self.start_radius, self.end_radius))
        counts = np.maximum(np.ceil(length / distance).astype(int), 1) + 1
        branch = np.repeat(np.arange(len(length)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        t = (np.arange(len(branch)) - first) / np.repeat(counts - 1, counts)
        s = t[:, None]
        points = self.start[branch] * (1 - s) + self.end[branch] * s + 4 * s * (1 - s) * self.bend[branch]
        radii = self.start_radius[branch] * (1 - t) + self.end_radius[branch] * t
        return points, radii, branch


def join(parts: list[Branches]) -> Branches:
    """Return all branches of ``parts`` as one object."""
    return Branches(*(np.concatenate([getattr(p, name) for p in parts]) for name in Branches.__dataclass_fields__))


def grow_tree(rng: np.random.Generator, root: Points, leaves: Points, leaf_radius: float, exponent: float) -> Branches:
    """Grow a tree from a root to all its leaves.

    Args:
        rng: random number generator.
        root: start of the tree (3,), mm.
        leaves: points that the tree must reach (n, 3), mm.
        leaf_radius: radius of a branch that supplies one leaf, mm.
        exponent: exponent of Murray's law: a branch's radius to this power is the sum of those of its children.

    Returns:
        The branches.
    """
    group = np.zeros(len(leaves), dtype=np.int64)
    tips = root[None].astype(np.float64)
    tip_radius = np.array([leaf_radius * len(leaves) ** (1 / exponent)])
    points = leaves
    parts: list[Branches] = []
    for _ in range(60):
        if len(points) == 0:
            break
        count = np.bincount(group, minlength=len(tips))
        sums = np.stack([np.bincount(group, weights=points[:, d], minlength=len(tips)) for d in range(3)], axis=1)
        centroid = sums / count[:, None]
        part = np.where(count == 1, 1.0, rng.uniform(0.3, 0.5, len(tips)))
        way = centroid - tips
        ends = tips + part[:, None] * way
        # The number of leaves determines the radius of a branch; at its start it is closer to that of the parent.
        radius = np.maximum(leaf_radius * count ** (1 / exponent), 1e-3)
        bend = rng.normal(0, 0.05, ends.shape) * np.minimum(np.linalg.norm(ends - tips, axis=1, keepdims=True), 25)
        start_radius = np.minimum(tip_radius, radius * 1.15)
        parts.append(Branches(tips, ends, bend, start_radius, np.where(count == 1, radius * 0.6, radius), count))

        growing = count > 1
        heading = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
        offset = points - centroid[group]
        products = np.einsum("ni,nj->nij", offset, offset).reshape(-1, 9)
        spread = np.stack([np.bincount(group, weights=products[:, k], minlength=len(tips)) for k in range(9)], axis=1)
        across = np.eye(3) - np.einsum("ni,nj->nij", heading, heading)
        spread = across @ spread.reshape(-1, 3, 3) @ across
        axis = np.linalg.eigh(spread)[1][:, :, -1]
        # Shift the dividing plane away from the centroid, so that siblings differ in size.
        shift = rng.normal(0, 0.15, len(tips)) * np.sqrt(np.trace(spread, axis1=1, axis2=2) / count)
        upper = np.einsum("ni,ni->n", offset, axis[group]) > shift[group]
        keep = growing[group]
        keys, group = np.unique(2 * group[keep] + upper[keep], return_inverse=True)
        points = points[keep]
        tips, tip_radius = ends[keys // 2], radius[keys // 2]
    return join(parts)


def airways_beside(arteries: Branches, leaf_radius: float, exponent: float) -> Branches:
    """Place airways next to arteries, anterior and superior to them, with about the same width.

    Args:
        arteries: the arteries.
        leaf_radius: radius of an airway that supplies one leaf, mm, before narrowing.
        exponent: exponent of Murray's law.

    Returns:
        The airways. Their radius is that of the lumen.
    """
    lumen = np.asarray(0.85 * leaf_radius * arteries.leaves ** (1 / exponent), dtype=np.float64)
    way = arteries.end - arteries.start
    way = way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-6)
    beside = np.array([0.0, -0.55, 0.83]) - way * (way @ np.array([0.0, -0.55, 0.83]))[:, None]
    beside /= np.maximum(np.linalg.norm(beside, axis=1, keepdims=True), 0.3)
    start = arteries.start + beside * (1.3 * arteries.start_radius + lumen)[:, None]
    end = arteries.end + beside * (1.3 * arteries.end_radius + lumen)[:, None]
    return Branches(start, end, arteries.bend, lumen * 1.05, lumen * 0.95, arteries.leaves)


@dataclass(frozen=True)
class Tubes:
    """Vessels and airways, as branches and as fractions of the fine voxels (z, y, x).

    Args:
        vessels: arteries and veins of both lungs.
        airways: airways next to the larger arteries.
        blood: fraction of each voxel that vessels fill.
        airway_walls: fraction of each voxel that airways fill, including their walls.
        airway_lumen: fraction of each voxel that the air in airways fills.
    """

    vessels: Branches
    airways: Branches
    blood: FloatArray
    airway_walls: FloatArray
    airway_lumen: FloatArray


def draw_tubes(rng: np.random.Generator, setting: Setting) -> Tubes:
    """Grow and paint the vessels and airways of both lungs.

    Args:
        rng: random number generator.
        setting: the setting of the scan.

    Returns:
        The vessels and airways.
    """
    thorax, height = setting.thorax, setting.thorax.body.height
    inner = thorax.grid.points_where(thorax.lung < -4)
    leaf_radius, exponent, volume_per_leaf = rng.uniform(0.36, 0.50), rng.uniform(2.7, 3.1), rng.uniform(450, 900)
    trees: list[Branches] = []
    beside: list[Branches] = []
    for side in (-1.0, 1.0):
        points = inner[np.sign(inner[:, 0]) == side]
        count = max(int(len(points) * thorax.grid.step[0] ** 3 / volume_per_leaf), 2)
        for root in ([side * 30, 0, 0.55 * height], [side * 24, -9, 0.47 * height]):
            leaves = points[rng.integers(0, len(points), count)] + rng.uniform(-1.2, 1.2, (count, 3))
            trees.append(grow_tree(rng, np.array(root), leaves, leaf_radius, exponent))
        arteries, airway_leaf_radius = trees[-2], leaf_radius * rng.uniform(0.75, 0.95)
        beside.append(airways_beside(arteries.where(arteries.leaves >= 90), airway_leaf_radius, exponent))
    vessels, airways = join(trees), join(beside)

    blood, walls, lumen = (np.zeros(setting.fine.shape, dtype=np.float32) for _ in range(3))
    sigma, grid = setting.acquisition.sigma, setting.fine
    points, radii, _ = vessels.sample(0.7)
    paint_tubes(blood, grid, points, np.minimum(radii, 7.0), sigma)
    everything = join([airways, _central_airways(height)])
    points, radii, branch = everything.sample(0.7)
    paint_tubes(walls, grid, points, 1.12 * radii + 0.25, sigma)
    # Mucus fills a few airways.
    open_points = ((rng.random(len(everything.leaves)) >= 0.04) | (everything.leaves <= 1))[branch]
    paint_tubes(lumen, grid, points[open_points], radii[open_points], sigma)
    return Tubes(vessels, airways, blood, walls, lumen)


def _central_airways(height: float) -> Branches:
    """Return the trachea and main bronchi for lungs of ``height`` mm."""
    carina = np.array([0.0, 4.0, 0.62 * height])
    start = np.array([[0.0, -4.0, 1.25 * height], carina, carina])
    end = np.array([carina, [-36.0, 6.0, 0.55 * height], [36.0, 8.0, 0.55 * height]])
    radius = np.array([8.5, 6.3, 5.8])
    return Branches(start, end, np.zeros((3, 3)), radius, radius * [1, 0.9, 0.9], np.ones(3, dtype=np.int64))
