"""One synthetic scan: everything put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from luna_monai.data.synthetic import nodules as nodule_module
from luna_monai.data.synthetic.acquisition import Acquisition, draw_acquisition
from luna_monai.data.synthetic.anatomy import Body, Thorax, build_thorax, draw_body
from luna_monai.data.synthetic.lookalikes import Canvas, paint_lookalikes
from luna_monai.data.synthetic.nodules import draw_nodule, paint_nodule, soften
from luna_monai.data.synthetic.painting import paint_tubes, share_inside, tile_slices, tube_profile
from luna_monai.data.synthetic.sampling import CoarseGrid, FloatArray, SliceSampler, VoxelGrid, smooth_noise
from luna_monai.data.synthetic.texture import lung_texture, scanner_noise
from luna_monai.data.synthetic.vessels import Branches, airways_beside, grow_tree, join

Points = NDArray[np.float64]

_COARSE_MM = 3.0
# A whole thorax fits into the field of view from here on; smaller ones are targeted on a part of a lung.
_WHOLE_THORAX_VOXELS = 400

#: Where negative candidates lie, as shares.
NEGATIVE_SHARES = {
    "branching": 0.17,  # where vessels branch or cross
    "vessel": 0.17,  # along vessels, many of which are seen end-on
    "bronchus": 0.06,  # walls of airways
    "wall": 0.14,  # pleura, ribs and their cartilage
    "mediastinum": 0.08,  # the lungs' inner surface, hila
    "diaphragm": 0.07,
    "fissure": 0.04,
    "finding": 0.12,  # plaques, scars, collapsed lung, infiltrates, lymph nodes
    "lung": 0.08,  # anywhere in the lungs
    "body": 0.04,  # anywhere in the body
    "outside": 0.03,  # skin, cloth, table, air
}


@dataclass(frozen=True)
class ScanOptions:
    """What a scan contains.

    Args:
        in_plane: voxels along x and along y.
        slices: voxels along z; as many as the thorax needs when None.
        candidates: how many candidates.
        nodules: mean number of nodules.
    """

    in_plane: int
    slices: int | None
    candidates: int
    nodules: float


@dataclass(frozen=True)
class SyntheticScan:
    """A scan and what is known about it. World coordinates are LPS (x, y, z), mm.

    Args:
        voxels: HU, int16 (z, y, x).
        spacing: distance of voxels along (x, y, z), mm.
        origin: world position of the first voxel.
        direction: signs of the x, y and z axis.
        annotations: nodules (n, 4): world position and diameter, mm.
        excluded: other findings (n, 4): world position and diameter, mm, or -1.
        candidates: (n, 4): world position, and 1 for a nodule or 0.
    """

    voxels: NDArray[np.int16]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, float, float]
    annotations: Points
    excluded: Points
    candidates: Points


def generate_scan(seed: np.random.SeedSequence, options: ScanOptions) -> SyntheticScan:
    """Generate a scan.

    Args:
        seed: decides everything about it.
        options: what it contains.

    Returns:
        The scan; the same bytes for the same seed and options.
    """
    # A product of matrices may differ in its last bits when another number of threads computes it.
    with threadpool_limits(limits=1, user_api="blas"):
        return _Generator(np.random.default_rng(seed), options).run()


class _Generator:
    """The state of one scan while it grows."""

    def __init__(self, rng: np.random.Generator, options: ScanOptions) -> None:
        self.rng = rng
        self.options = options
        self.acquisition: Acquisition = draw_acquisition(rng, options.in_plane, options.slices)
        self.body: Body = draw_body(rng)
        self.center = self._aim()
        self.final = self._voxel_grid(1)
        self.grid = self._voxel_grid(self.acquisition.oversampling)
        self.thorax: Thorax = build_thorax(rng, self.body, self._coarse_grid())

    def run(self) -> SyntheticScan:
        """Generate the scan."""
        rng = self.rng
        blood_tree, airways = self._trees()
        blood, soft, lumen = (np.zeros(self.grid.shape, dtype=np.float32) for _ in range(3))
        self._paint_trees(blood_tree, airways, blood, soft, lumen)
        volume = self._compose(blood, soft, lumen)
        pools = self._pools(blood_tree, airways)
        canvas = Canvas(volume, self.grid, self.acquisition.sigma)
        in_view = np.mean(self.grid.contains(self.thorax.grid.points_where(self.thorax.lung < 0)))
        findings = paint_lookalikes(rng, canvas, self.thorax, pools, float(in_view))
        pools["finding"] = findings
        nodules, other = self._paint_nodules(volume, pools, float(in_view))
        candidates = self._candidates(pools, nodules, other)
        excluded = np.concatenate([other, np.column_stack([findings, np.full(len(findings), -1.0)])])
        voxels = self._scan(volume)
        return SyntheticScan(
            voxels=voxels,
            spacing=self.acquisition.spacing,
            origin=self._origin(),
            direction=self.acquisition.direction,
            annotations=self._to_world(nodules),
            excluded=self._to_world(excluded[self.final.contains(excluded[:, :3])]),
            candidates=self._to_world(candidates),
        )

    # Geometry

    def _aim(self) -> tuple[float, float, float]:
        """Choose the position of the volume's centre in the patient, mm."""
        rng, body = self.rng, self.body
        if self.options.in_plane >= _WHOLE_THORAX_VOXELS:
            x, y = rng.normal(0, 6), rng.normal(8, 8)
        else:
            x = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.75) * body.width
            y = rng.uniform(-0.55, 0.6) * body.depth
        z = body.height / 2 + rng.uniform(-20, 15)
        if self.options.slices is not None:
            z = rng.uniform(0.2, 0.8) * body.height
        return float(x), float(y), float(z)

    def _voxel_grid(self, oversampling: int) -> VoxelGrid:
        spacing, sign = self.acquisition.spacing, self.acquisition.direction
        nz, ny, nx = self.acquisition.shape
        shape = (nz * oversampling, ny, nx)
        step = (sign[0] * spacing[0], sign[1] * spacing[1], spacing[2] / oversampling)
        x, y, z = (c - s * (n - 1) / 2 for c, s, n in zip(self.center, step, (nx, ny, nz * oversampling), strict=True))
        return VoxelGrid((x, y, z), step, shape)

    def _coarse_grid(self) -> CoarseGrid:
        """Cover the voxels, and the whole lungs because vessels grow from what they supply."""
        body = self.body
        covered = self.grid.coarse(_COARSE_MM)
        low = np.minimum(covered.start, [-body.width - 12, -body.depth - 12, -12])
        ends = np.asarray(covered.start) + _COARSE_MM * (np.asarray(covered.shape[::-1]) - 1)
        high = np.maximum(ends, [body.width + 12, body.depth + 26, body.height + 8])
        sizes = np.ceil((high - low) / _COARSE_MM).astype(int) + 1
        start = (float(low[0]), float(low[1]), float(low[2]))
        return CoarseGrid(start, _COARSE_MM, (int(sizes[2]), int(sizes[1]), int(sizes[0])))

    def _origin(self) -> tuple[float, float, float]:
        world = self._to_world(np.array([[*self.final.start, 0.0]]))[0]
        return float(world[0]), float(world[1]), float(world[2])

    def _to_world(self, rows: Points) -> Points:
        """Move the positions in the first three columns from the patient's mm to world coordinates."""
        moved = rows.copy()
        moved[:, :3] += np.asarray(self.acquisition.center) - np.asarray(self.center)
        return moved

    # Vessels and airways

    def _trees(self) -> tuple[Branches, Branches]:
        rng, body, thorax = self.rng, self.body, self.thorax
        inner = thorax.grid.points_where(thorax.lung < -4)
        leaf_radius, exponent = float(rng.uniform(0.36, 0.50)), float(rng.uniform(2.7, 3.1))
        volume_per_leaf = float(rng.uniform(450, 900))
        blood, airways = [], []
        for side in (-1.0, 1.0):
            points = inner[np.sign(inner[:, 0]) == side]
            count = max(int(len(points) * _COARSE_MM**3 / volume_per_leaf), 2)
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
            airways.append(airways_beside(trees[0].where(trees[0].leaves >= 40), airway_leaf_radius, exponent))
        return join(blood), join(airways)

    def _central_airways(self) -> Branches:
        height = self.body.height
        carina = np.array([0.0, 4.0, 0.62 * height])
        start = np.array([[0.0, -4.0, 1.25 * height], carina, carina])
        end = np.array([carina, [-36.0, 6.0, 0.55 * height], [36.0, 8.0, 0.55 * height]])
        radius = np.array([8.5, 6.3, 5.8])
        return Branches(start, end, np.zeros((3, 3)), radius, radius * [1, 0.9, 0.9], np.ones(3, dtype=np.int64))

    def _paint_trees(
        self, blood_tree: Branches, airways: Branches, blood: FloatArray, soft: FloatArray, lumen: FloatArray
    ) -> None:
        sigma, profile, grid = self.acquisition.sigma, tube_profile(), self.grid
        points, radii, _ = blood_tree.sample(0.7)
        paint_tubes(blood, grid, points, radii, sigma, profile)
        everything = join([airways, self._central_airways()])
        points, radii, branch = everything.sample(0.7)
        wall = 0.3 + 0.14 * radii
        paint_tubes(soft, grid, points, radii + wall, sigma, profile)
        # Mucus fills a few airways.
        plugged = (self.rng.random(len(everything.leaves)) < 0.04) & (everything.leaves > 1)
        open_points = ~plugged[branch]
        paint_tubes(lumen, grid, points[open_points], radii[open_points], sigma, profile)

    # Tissue

    def _fissures(self) -> list[tuple[FloatArray, float, float, FloatArray | None]]:
        """Height of the fissures over each (y, x), mm, with their slope, side and, if any, lower limit."""
        rng, body, grid = self.rng, self.body, self.grid
        y, x = grid.axis(1).astype(np.float32)[:, None], grid.axis(0).astype(np.float32)[None, :]
        result: list[tuple[FloatArray, float, float, FloatArray | None]] = []
        for side in (-1.0, 1.0):
            slope = float(rng.uniform(0.7, 1.2))
            bend = 7 * smooth_noise(rng, (1, y.shape[0], x.shape[1]), (1, 4, 4))[0]
            oblique = (rng.uniform(0.36, 0.46) * body.height + slope * y + bend).astype(np.float32)
            result.append((oblique, slope, side, None))
            if side < 0 and rng.random() < 0.8:
                bend = 8 * smooth_noise(rng, (1, y.shape[0], x.shape[1]), (1, 3, 3))[0]
                horizontal = (rng.uniform(0.44, 0.54) * body.height + 0.15 * (y + 30) + bend).astype(np.float32)
                result.append((horizontal, 0.15, side, oblique))
        return result

    def _compose(self, blood: FloatArray, soft: FloatArray, lumen: FloatArray) -> FloatArray:
        """Put air, lung, soft tissue, bone, vessels and airways together (fine slices)."""
        rng, body, thorax, grid = self.rng, self.body, self.thorax, self.grid
        sigma = np.float32(self.acquisition.sigma)
        sampler = SliceSampler(thorax.grid, grid)
        y, x = grid.axis(1).astype(np.float32)[:, None], grid.axis(0).astype(np.float32)[None, :]
        z_axis = grid.axis(2)
        down = -1.0 if self.acquisition.flipped else 1.0
        mean_hu, gradient = rng.uniform(-895, -810), rng.uniform(0.25, 1.2)
        gravity = (mean_hu + down * gradient * y).astype(np.float32)
        dependent = np.float32(rng.uniform(0, 160)) * np.clip(down * y / body.depth, 0, 1)
        emphysema = float(rng.uniform(0.1, 0.9)) if rng.random() < 0.2 else 0.0
        tile = lung_texture(rng, grid.step, float(rng.uniform(8, 22)), float(rng.uniform(6, 18)), emphysema)
        fissures, fissure_hu = self._fissures(), float(rng.uniform(40, 220))
        marrow, cortex = np.float32(rng.uniform(120, 280)), np.float32(rng.uniform(450, 900))
        wall_hu, blood_hu = np.float32(rng.uniform(-20, 40)), np.float32(body.contrast_hu)
        table = self._table()

        volume = np.empty(grid.shape, dtype=np.float32)
        plane = (grid.shape[1], grid.shape[2])
        gravity, dependent = (np.broadcast_to(part, plane).ravel() for part in (gravity, dependent))
        side_of = np.broadcast_to(np.sign(x), plane).ravel()
        for z, texture in enumerate(tile_slices(tile, grid.shape)):
            distance = sampler.slice(thorax.lung, z).ravel()
            hu = volume[z].reshape(-1)
            np.maximum(sampler.slice(thorax.soft_hu, z).ravel(), table.ravel(), out=hu)

            where = np.flatnonzero(distance < 2.5 * sigma)
            depth = distance[where]
            lung = gravity[where] + texture.ravel()[where]
            lung += dependent[where] * np.exp(np.clip(depth, -60, 0) / 9)
            for height, slope, side, lower in fissures:
                rise = np.float32(z_axis[z]) - height.ravel()[where]
                near = (np.abs(rise) < 3 * np.hypot(1, slope)) & (side_of[where] == side)
                if lower is not None:
                    near &= (lower < height).ravel()[where]
                part = np.flatnonzero(near)
                squared = (rise[part] / np.float32(np.hypot(1, slope) * (0.35 + sigma))) ** 2
                lung[part] += np.float32(fissure_hu) * np.exp(-0.5 * squared)
            hu[where] += (np.maximum(lung, -995) - hu[where]) * share_inside(depth, float(sigma))

            bone = sampler.slice(thorax.bone, z).ravel()
            where = np.flatnonzero(bone < 2)
            near_bone = bone[where]
            bone_hu = marrow + cortex * np.exp(-(((near_bone + np.float32(1.0)) / np.float32(1.1)) ** 2))
            hu[where] += (bone_hu - hu[where]) * share_inside(near_bone, float(sigma) + 0.2)

            for share, tissue_hu in ((blood[z].ravel(), blood_hu), (soft[z].ravel(), wall_hu)):
                where = np.flatnonzero(share)
                hu[where] += np.maximum(tissue_hu - hu[where], 0) * share[where]
            share = lumen[z].ravel()
            where = np.flatnonzero(share)
            hu[where] += (np.float32(-985) - hu[where]) * share[where]
        return volume

    def _table(self) -> FloatArray:
        """HU (y, x) of the table below the patient; very low elsewhere."""
        rng, grid = self.rng, self.grid
        # The table is where gravity points to, whichever way the patient lies.
        down = -1.0 if self.acquisition.flipped else 1.0
        y, x = down * grid.axis(1)[:, None], grid.axis(0)[None, :]
        depth = self.body.depth + 27 + 0.8 * self.body.fat + 8 * down
        top = depth + rng.uniform(6, 14) - x**2 * rng.uniform(0.0004, 0.0012)
        bottom = top + rng.uniform(22, 40)
        hu = np.full((y.shape[0], x.shape[1]), -3000.0)
        for surface, strength in ((top, rng.uniform(-600, -100)), (bottom, rng.uniform(-300, 150))):
            hu = np.maximum(hu, strength - (strength + 1000) * (np.abs(y - surface) / 2.2) ** 2)
        return np.where((y > top - 5) & (hu > -1000), hu, -3000).astype(np.float32)

    def _scan(self, volume: FloatArray) -> NDArray[np.int16]:
        """Average fine slices, add noise, and round to whole HU."""
        rng, acquisition = self.rng, self.acquisition
        fine = acquisition.oversampling
        if fine == 2:
            # A slice sees a little of its neighbours too.
            volume = soften(volume, (0.15, 0.7, 0.15))
        elif acquisition.thick_slices:
            volume = soften(volume, (0.25, 0.5, 0.25))
        thickness = max(acquisition.spacing[2], 1.0) * (1.6 if acquisition.thick_slices else 1.0)
        tile = scanner_noise(rng, acquisition.spacing, acquisition.noise_cutoff, thickness)
        z_axis, height = self.final.axis(2), self.body.height
        outside = None
        if self.options.in_plane >= _WHOLE_THORAX_VOXELS:
            radius = np.hypot(*np.ogrid[-1 : 1 : acquisition.shape[1] * 1j, -1 : 1 : acquisition.shape[2] * 1j])
            outside = np.nonzero(radius > 1)
        voxels = np.empty(acquisition.shape, dtype=np.int16)
        for z, noise in enumerate(tile_slices(tile, acquisition.shape)):
            hu = volume[z * fine : (z + 1) * fine].mean(axis=0) if fine > 1 else volume[z]
            shoulders = 1 + 1.2 * np.clip(z_axis[z] / height - 0.85, 0, 0.4)
            amount = np.float32(acquisition.noise_hu * shoulders) * (0.55 + 0.45 * np.clip((hu + 900) / 800, 0, 1))
            hu = np.rint(hu + amount * noise)
            if outside is not None:
                hu[outside] = acquisition.padding_hu
                voxels[z] = np.clip(hu, acquisition.padding_hu, 3071)
            else:
                voxels[z] = np.clip(hu, -1024, 3071)
        return voxels

    # Findings and candidates

    def _pools(self, blood_tree: Branches, airways: Branches) -> dict[str, Points]:
        """Collect positions in view where nodules, lookalikes and negatives may lie."""
        rng, thorax = self.rng, self.thorax
        grid, lung, cavity, diaphragm = thorax.grid, thorax.lung, thorax.cavity, thorax.diaphragm
        surface = np.abs(lung) < 1.5
        branching = (blood_tree.leaves > 1) & (blood_tree.end_radius > 0.6)
        points, radii, _ = blood_tree.where(blood_tree.start_radius > 0.6).sample(3.0)
        vessel = points[rng.random(len(points)) < np.clip(radii / 3, 0, 1)]
        in_lung = grid.value_at(lung, blood_tree.end) < 4
        pools = {
            "branching": blood_tree.end[branching & in_lung],
            "vessel": vessel[grid.value_at(lung, vessel) < 4],
            "bronchus": airways.end,
            "wall": grid.points_where(surface & (np.abs(cavity) < 5)),
            "mediastinum": grid.points_where(surface & (cavity < -14) & (diaphragm > 10)),
            "diaphragm": grid.points_where(surface & (np.abs(diaphragm) < 2)),
            "fissure": self._fissure_points(),
            "lung": grid.points_where(lung < -5),
            "body": grid.points_where((lung > 8) & (thorax.skin < 0)),
            "outside": grid.points_where(thorax.skin > -3),
        }
        return {name: points[self.final.contains(points)] for name, points in pools.items()}

    def _fissure_points(self) -> Points:
        # The oblique fissure runs near this plane; candidates only need its neighbourhood.
        points = self.thorax.grid.points_where(self.thorax.lung < -8)
        rise = points[:, 2] - (0.41 * self.body.height + 0.95 * points[:, 1])
        return points[np.abs(rise) < 5]

    def _place(self, place: str, radius: float, pools: dict[str, Points]) -> Points | None:
        """Choose a nodule's position (3,), or None when the view has no such place."""
        rng, thorax = self.rng, self.thorax
        points = pools[{"free": "lung", "vascular": "vessel", "pleural": "wall"}[place]]
        points = points[self.final.contains(points, min(radius, 6.0))]
        if len(points) == 0:
            return None
        point = points[rng.integers(len(points))] + rng.uniform(-1.2, 1.2, 3)
        if place == nodule_module.PLEURAL:
            return np.asarray(point - thorax.normal(point[None])[0] * radius * rng.uniform(0.25, 0.95))
        if place == nodule_module.VASCULAR:
            way = rng.normal(size=3)
            return np.asarray(point + way / np.linalg.norm(way) * radius * rng.uniform(0.3, 1.0))
        return np.asarray(point)

    def _paint_nodules(self, volume: FloatArray, pools: dict[str, Points], in_view: float) -> tuple[Points, Points]:
        """Paint nodules and, apart from them, small or doubtful ones that are no candidates."""
        rng, sigma = self.rng, self.acquisition.sigma
        wanted = rng.poisson(self.options.nodules)
        doubtful, tiny = rng.poisson(1.0 * in_view), rng.poisson(8.0 * in_view)
        rows: list[list[float]] = []
        kinds: list[str] = []
        places, shares = list(nodule_module.PLACE_SHARES), list(nodule_module.PLACE_SHARES.values())
        for label in ["nodule"] * wanted + ["doubtful"] * doubtful + ["tiny"] * tiny:
            nodule = draw_nodule(rng)
            if label == "tiny":
                nodule = nodule_module.draw_micronodule(rng)
            for _ in range(20):
                center = self._place(str(rng.choice(places, p=shares)), nodule.radius, pools)
                if center is None or not self.final.contains(center[None], 1.0)[0]:
                    continue
                if float(self.thorax.grid.value_at(self.thorax.lung, center[None])[0]) > 0.3 * nodule.radius:
                    continue
                taken = np.array(rows).reshape(-1, 4)
                gap = np.linalg.norm(taken[:, :3] - center, axis=1) - np.maximum(taken[:, 3], 3) / 2
                if np.all(gap > nodule.radius + 3):
                    diameter = paint_nodule(rng, volume, self.grid, center, nodule, sigma)
                    rows.append([*center, diameter])
                    kinds.append(label)
                    break
        found, labels = np.array(rows).reshape(-1, 4), np.array(kinds, dtype=object)
        other = found[labels != "nodule"]
        other[labels[labels != "nodule"] == "tiny", 3] = -1.0
        return found[labels == "nodule"], other

    def _candidates(self, pools: dict[str, Points], nodules: Points, other: Points) -> Points:
        """Choose candidates: hits on the nodules, and negatives away from them."""
        rng = self.rng
        # LUNA16 has 1,351 hits on 1,186 nodules: the detectors found some of them twice.
        hits = np.repeat(nodules, 1 + (rng.random(len(nodules)) < 165 / 1186), axis=0)
        offset = np.clip(rng.normal(0, 0.08, (len(hits), 3)), -0.24, 0.24) * hits[:, 3:]
        positives = hits[:, :3] + offset
        positives = positives[self.final.contains(positives)][: self.options.candidates]
        count = self.options.candidates - len(positives)

        avoid = np.concatenate([nodules, other])
        names = [name for name in NEGATIVE_SHARES if len(pools[name])]
        shares = np.array([NEGATIVE_SHARES[name] for name in names])
        chosen: list[Points] = []
        missing = count
        while missing > 0:
            kinds = rng.choice(len(names), 2 * missing + 16, p=shares / shares.sum())
            picked = np.stack([pools[names[k]][rng.integers(len(pools[names[k]]))] for k in kinds])
            picked = picked + rng.normal(0, 1.0, picked.shape)
            clear = self.final.contains(picked)
            for finding in avoid:
                reach = max(float(finding[3]), 2.0) / 2 + 5.0
                clear &= np.linalg.norm(picked - finding[:3], axis=1) > reach
            chosen.append(picked[clear][:missing])
            missing -= len(chosen[-1])
        negatives = np.concatenate(chosen) if chosen else np.zeros((0, 3))
        return np.concatenate(
            [
                np.column_stack([positives, np.ones(len(positives))]),
                np.column_stack([negatives, np.zeros(len(negatives))]),
            ]
        )
