"""Nodules: how large, of what and of which shape, and how they are painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.synthetic.painting import neighbourhood, share_inside
from luna_monai.synthetic.sampling import FloatArray, VoxelGrid, smooth_noise

# Quantiles of the diameters of LUNA16's 1,186 annotations, mm.
_DIAMETER_SHARE = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
_DIAMETER_MM = (3.25, 3.59, 4.09, 4.40, 5.11, 6.43, 9.70, 15.5, 19.0, 24.0, 30.0)

SOLID, PART_SOLID, GROUND_GLASS = "solid", "part-solid", "ground-glass"
# Attenuation of LIDC-IDRI's nodules as its readers rated their texture, roughly.
_KIND_SHARES = {SOLID: 0.82, PART_SOLID: 0.09, GROUND_GLASS: 0.09}
FREE, VASCULAR, PLEURAL = "free", "vascular", "pleural"


@dataclass(frozen=True)
class Nodule:
    """One nodule's properties.

    Args:
        radius: mean radius, mm.
        kind: ``solid``, ``part-solid`` or ``ground-glass``.
        density_hu: of the soft tissue, HU.
        glass_hu: of the ground glass, HU.
        calcium_hu: of a calcified core, HU; None for no calcium.
        cavity: radius of an air-filled cavity as a share of ``radius``; 0 for none.
        lobulation: how far lobes stand out, as a share of ``radius``.
        roughness: irregularity of the surface, as a share of ``radius``.
        spicules: how many.
        blur: additional softness of the margin, mm.
    """

    radius: float
    kind: str
    density_hu: float
    glass_hu: float
    calcium_hu: float | None
    cavity: float
    lobulation: float
    roughness: float
    spicules: int
    blur: float


def draw_nodule(rng: np.random.Generator) -> Nodule:
    """Draw a nodule's properties.

    Args:
        rng: source of randomness.

    Returns:
        The nodule.
    """
    radius = float(np.interp(rng.random(), _DIAMETER_SHARE, _DIAMETER_MM)) / 2
    kind = str(rng.choice(list(_KIND_SHARES), p=list(_KIND_SHARES.values())))
    if kind != SOLID:
        radius = max(radius, float(rng.uniform(2.5, 5)))
    spiculated = rng.random() < np.interp(radius, [2.5, 5, 10], [0.05, 0.25, 0.5])
    lobulated = rng.random() < np.interp(radius, [2.5, 5, 10], [0.15, 0.4, 0.6])
    calcified = kind == SOLID and rng.random() < 0.09
    hollow = radius > 2.8 and kind == SOLID and not calcified and rng.random() < 0.2
    return Nodule(
        radius=radius,
        kind=kind,
        density_hu=float(rng.normal(20, 45)),
        glass_hu=float(rng.uniform(-650, -350)),
        calcium_hu=float(rng.uniform(180, 900)) if calcified else None,
        cavity=float(rng.uniform(0.25, 0.85)) if hollow else 0.0,
        lobulation=float(rng.uniform(0.15, 0.55)) if lobulated else 0.0,
        roughness=float(rng.uniform(0.03, 0.20)),
        spicules=int(rng.integers(5, 18)) if spiculated else 0,
        blur=float(rng.uniform(0, 0.4) if kind == SOLID else rng.uniform(0.2, 0.9)),
    )


def blend(volume: FloatArray, block: tuple[slice, slice, slice], share: FloatArray, hu: FloatArray | float) -> None:
    """Paint tissue into a volume where it is denser than what is there.

    Args:
        volume: HU (z, y, x), changed in place.
        block: where to paint.
        share: of each of the block's voxels that the tissue fills.
        hu: of the tissue.
    """
    there = volume[block]
    np.maximum(there, there + (hu - there) * share, out=there)


def _radius_map(
    rng: np.random.Generator, nodule: Nodule, position: tuple[FloatArray, FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Distance from the centre in a randomly turned, slightly oval frame, and the direction-dependent radius."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    axes = np.exp(rng.normal(0, 0.18, 3))
    axes /= np.prod(axes) ** (1 / 3)
    x, y, z = position
    turned = [
        (t[0] * x + t[1] * y + t[2] * z) / np.float32(a) for t, a in zip(turn.astype(np.float32), axes, strict=True)
    ]
    distance = np.sqrt(sum(t * t for t in turned) + np.float32(1e-6))
    radius = np.full(distance.shape, nodule.radius, dtype=np.float32)
    if nodule.lobulation > 0:
        for lobe in rng.normal(size=(int(rng.integers(4, 9)), 3)):
            lobe = (lobe / np.linalg.norm(lobe)).astype(np.float32)
            cosine = sum(part * t for part, t in zip(lobe, turned, strict=True)) / distance
            radius += np.float32(nodule.radius * nodule.lobulation) * (np.exp((cosine - 1) * 7) - np.float32(0.09))
    return distance.astype(np.float32), radius


def paint_nodule(
    rng: np.random.Generator,
    volume: FloatArray,
    grid: VoxelGrid,
    center: NDArray[np.float64],
    nodule: Nodule,
    sigma: float,
) -> float:
    """Paint a nodule.

    Args:
        rng: source of randomness for its shape.
        volume: HU (z, y, x), changed in place.
        grid: the voxels.
        center: its centre (3,), (x, y, z) in mm.
        nodule: its properties.
        sigma: standard deviation of the scanner's blur, mm.

    Returns:
        The diameter of a ball of the same volume, mm.
    """
    found = neighbourhood(grid, center, nodule.radius * 1.9 + 5)
    if found is None:
        return 2 * nodule.radius
    block, position = found
    distance, radius = _radius_map(rng, nodule, position)
    cells = tuple(max(2, round(4.0 * (s.stop - s.start) * abs(step) / (2 * nodule.radius) / 3))
                  for s, step in zip(block, grid.step[::-1], strict=True))  # fmt: skip
    roughness = smooth_noise(rng, distance.shape, (cells[0], cells[1], cells[2]))
    roughness += 0.5 * smooth_noise(rng, distance.shape, (2 * cells[0], 2 * cells[1], 2 * cells[2]))
    depth = distance - radius * (1 + np.float32(nodule.roughness) * roughness)
    body = depth
    blur = float(np.hypot(sigma, nodule.blur))
    if nodule.spicules:
        depth = np.minimum(depth, _spicules(rng, nodule, position))
    if nodule.kind == SOLID:
        uneven_hu = nodule.density_hu + 20 * roughness
        blend(volume, block, share_inside(depth, blur), uneven_hu)
    else:
        mottled = nodule.glass_hu + 45 * smooth_noise(rng, distance.shape, (cells[0] * 3, cells[1] * 3, cells[2] * 3))
        blend(volume, block, share_inside(depth, blur), mottled)
    if nodule.kind == PART_SOLID:
        core = rng.uniform(0.35, 0.75) * nodule.radius
        shift = rng.normal(0, 0.2, 3) * nodule.radius
        offset = sum((p - np.float32(s)) ** 2 for p, s in zip(position, shift, strict=True))
        uneven = np.sqrt(offset) - np.float32(core) * (1 + np.float32(0.25) * roughness)
        blend(volume, block, share_inside(uneven.astype(np.float32), sigma), nodule.density_hu)
    if nodule.calcium_hu is not None:
        part = rng.uniform(0.4, 1.05)
        blend(volume, block, share_inside(distance - np.float32(part) * radius, sigma), nodule.calcium_hu)
    if nodule.cavity > 0:
        shift = rng.normal(0, 0.12, 3) * nodule.radius
        offset = np.sqrt(sum((p - np.float32(s)) ** 2 for p, s in zip(position, shift, strict=True)))
        hole = offset - np.float32(nodule.cavity) * radius * (1 + np.float32(0.15) * roughness)
        there = volume[block]
        there += (np.float32(-950) - there) * share_inside(hole.astype(np.float32), sigma)
    voxel = abs(float(np.prod(grid.step)))
    filled = float(share_inside(body, sigma).sum()) * voxel
    return float(np.clip(2 * (3 * filled / (4 * np.pi)) ** (1 / 3), 3.0, 33.0))


def _spicules(
    rng: np.random.Generator, nodule: Nodule, position: tuple[FloatArray, FloatArray, FloatArray]
) -> FloatArray:
    """Distance to thin cones that radiate from the nodule."""
    x, y, z = position
    result = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), 99, dtype=np.float32)
    for way in rng.normal(size=(nodule.spicules, 3)):
        way = (way / np.linalg.norm(way)).astype(np.float32)
        length = np.float32(nodule.radius + rng.uniform(1.0, 0.8 * nodule.radius + 3))
        along = way[0] * x + way[1] * y + way[2] * z
        held = np.clip(along, 0, length)
        away = np.sqrt((x - held * way[0]) ** 2 + (y - held * way[1]) ** 2 + (z - held * way[2]) ** 2)
        thickness = np.float32(rng.uniform(0.5, 1.0)) * (1 - np.float32(0.8) * held / length)
        result = np.minimum(result, away - thickness)
    return result


def soften(volume: FloatArray, kernel: tuple[float, ...]) -> FloatArray:
    """Average neighbouring slices with ``kernel``, as slices that are thicker than their distance do."""
    return np.asarray(ndimage.convolve1d(volume, np.asarray(kernel, dtype=np.float32), axis=0, mode="nearest"))


def draw_micronodule(rng: np.random.Generator) -> Nodule:
    """Draw a nodule below 3 mm, which LUNA16 lists among the findings that do not count.

    Args:
        rng: source of randomness.

    Returns:
        The nodule.
    """
    calcium = float(rng.uniform(180, 900)) if rng.random() < 0.2 else None
    return Nodule(float(rng.uniform(0.6, 1.3)), SOLID, float(rng.normal(25, 35)), 0, calcium, 0, 0, 0.05, 0, 0.1)
