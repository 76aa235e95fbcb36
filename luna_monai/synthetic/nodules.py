"""Nodules: how large, of what and of which shape, and how they are painted."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.synthetic.painting import Block, Canvas, paint_tubes, share_inside
from luna_monai.synthetic.sampling import FloatArray, Grid, Points, smooth_noise
from luna_monai.synthetic.vessels import Branches

# Diameters are about even over their logarithm. LUNA16 has few large nodules, and a network that is trained on few of
# them finds few; no two of them look alike, so there are a few more of them still.
DIAMETER_MM = (3.0, 33.0)
_TOWARDS_LARGE = 0.8
SOLID, PART_SOLID, GROUND_GLASS = "solid", "part-solid", "ground-glass"
_KIND_SHARES = {SOLID: 0.76, PART_SOLID: 0.13, GROUND_GLASS: 0.11}
_OUTLINED_SHARE = 0.65  # of shapes that are outlines of LIDC-IDRI's nodules; the others are balls with lobes
_OTHER_SIZE = 0.5  # how far the logarithm of an outline's own diameter may be from the nodule's
_VISIBLE_HU = 150.0  # mean contrast from which a reader would mark a nodule
_SHAPE_POINTS = 32  # along each axis of a shape's cube


@dataclass(frozen=True)
class Nodule:
    """One nodule's properties.

    Args:
        radius: of a ball of the same volume, mm.
        kind: ``solid``, ``part-solid`` or ``ground-glass``.
        density_hu: of the soft tissue, HU.
        glass_hu: of the ground glass, HU.
        calcium_hu: of calcium, HU; None for none.
        calcium: how far it reaches from the center, as a share of the radius; above 1 all is calcium.
        cavity: radius of an air-filled cavity as a share of ``radius``; 0 for none.
        shape: the outlined shape, a row of ``nodule_shapes.npz``; None for a ball with lobes.
        lobulation: how far lobes stand out, as a share of ``radius``.
        roughness: irregularity of the surface, as a share of ``radius``.
        spicules: number of short cones that radiate from the surface.
        strands: number of long thin ones.
        bronchi: number of air-filled bronchi inside.
        bubbles: number of small bubbles of air inside.
        halo: width of ground glass around it, mm.
        blur: additional softness of the margin, mm.
    """

    radius: float
    kind: str = SOLID
    density_hu: float = 30.0
    glass_hu: float = -600.0
    calcium_hu: float | None = None
    calcium: float = 0.0
    cavity: float = 0.0
    shape: int | None = None
    lobulation: float = 0.0
    roughness: float = 0.05
    spicules: int = 0
    strands: int = 0
    bronchi: int = 0
    bubbles: int = 0
    halo: float = 0.0
    blur: float = 0.0


@functools.cache
def _shapes() -> dict[str, NDArray[Any]]:
    """Outlines of LIDC-IDRI's nodules; nodule_shapes.txt says where they are from."""
    with np.load(Path(__file__).with_name("nodule_shapes.npz")) as file:
        return {name: file[name] for name in file.files}


def draw_nodule(rng: np.random.Generator) -> Nodule:
    """Draw a nodule's properties.

    Args:
        rng: source of randomness.

    Returns:
        The nodule.
    """
    radius = float(np.exp(np.interp(rng.random() ** _TOWARDS_LARGE, [0, 1], np.log(DIAMETER_MM)))) / 2
    kind = str(rng.choice(list(_KIND_SHARES), p=list(_KIND_SHARES.values())))
    if kind != SOLID:
        radius = max(radius, float(rng.uniform(2.5, 5)))
    solid = kind == SOLID

    def chance(*shares: float) -> bool:
        return bool(rng.random() < np.interp(radius, [2.5, 5, 10], shares))

    outlined = np.flatnonzero(np.abs(np.log(_shapes()["diameter_mm"].astype(float) / (2 * radius))) < _OTHER_SIZE)
    outlined = outlined if rng.random() < _OUTLINED_SHARE else outlined[:0]
    calcified = solid and rng.random() < 0.13
    mass = radius > 7.5  # never all calcium, unlike granulomas
    hollow = radius > 2.8 and not calcified and chance(0.2, 0.2, 0.17)
    airy = not hollow and not calcified and chance(0.0, 0.15, 0.3)
    return Nodule(
        radius=radius,
        kind=kind,
        density_hu=float(rng.uniform(-60, 110)),
        glass_hu=float(rng.uniform(-700, -350)),
        calcium_hu=float(rng.uniform(180, 1400)) if calcified else None,
        calcium=(rng.uniform(0.2, 0.6) if mass else rng.choice([rng.uniform(0.4, 0.95), 2.0])) if calcified else 0.0,
        cavity=float(rng.uniform(0.25, 0.88)) if hollow else 0.0,
        shape=int(rng.choice(outlined)) if len(outlined) else None,
        lobulation=float(rng.uniform(0.15, 0.7)) if chance(0.2, 0.5, 0.8) else 0.0,
        roughness=float(rng.uniform(0.03, 0.22)),
        spicules=int(rng.integers(8, 50)) if chance(0.05, 0.35, 0.6) else 0,
        strands=int(rng.integers(1, 8)) if chance(0.1, 0.35, 0.55) else 0,
        bronchi=int(rng.integers(1, 4)) if airy and rng.random() < 0.6 else 0,
        bubbles=int(rng.integers(1, 7)) if airy else 0,
        halo=float(rng.uniform(1, 6)) if chance(0.0, 0.08, 0.15) else 0.0,
        blur=float(rng.uniform(0, rng.choice([0.4, 1.2])) if solid else rng.uniform(0.2, 0.9)),
    )


def draw_micronodule(rng: np.random.Generator) -> Nodule:
    """Draw a nodule below 3 mm, which LUNA16 lists among the findings that do not count.

    Args:
        rng: source of randomness.

    Returns:
        The nodule.
    """
    calcified = rng.random() < 0.2
    radius, density_hu = float(rng.uniform(0.6, 1.3)), float(rng.normal(25, 35))
    calcium_hu = float(rng.uniform(180, 900)) if calcified else None
    return Nodule(radius=radius, density_hu=density_hu, calcium_hu=calcium_hu, calcium=2.0, blur=0.1)


def _ball(rng: np.random.Generator, nodule: Nodule, turned: list[FloatArray]) -> FloatArray:
    """Distance to the surface of a slightly oval ball with lobes and notches, mm, negative inside."""
    axes = np.exp(rng.normal(0, 0.18, 3))
    axes /= np.prod(axes) ** (1 / 3)
    x, y, z = (t / np.float32(a) for t, a in zip(turned, axes, strict=True))
    distance = np.sqrt(x * x + y * y + z * z + np.float32(1e-6))
    radius = np.full(distance.shape, nodule.radius, dtype=np.float32)
    if nodule.lobulation > 0:
        for lobe in rng.normal(size=(int(rng.integers(4, 9)), 3)):
            way = (lobe / np.linalg.norm(lobe)).astype(np.float32)
            cosine = (way[0] * x + way[1] * y + way[2] * z) / distance
            radius += np.float32(nodule.radius * nodule.lobulation) * (np.exp((cosine - 1) * 7) - np.float32(0.09))
    return np.asarray(distance - radius, dtype=np.float32)


def _outlined(rng: np.random.Generator, nodule: Nodule, turned: list[FloatArray]) -> FloatArray:
    """Distance to the surface of an outlined shape, mm, negative inside."""
    shapes = _shapes()
    mask = np.pad(np.unpackbits(shapes["mask"][nodule.shape]).reshape((_SHAPE_POINTS,) * 3).astype(bool), 5)
    depth = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    depth = ndimage.gaussian_filter(depth, 0.8).astype(np.float32)
    step = 2 * nodule.radius / float(shapes["diameter_points"][nodule.shape])
    middle = (mask.shape[0] - 1) / 2
    stretch = np.exp(rng.normal(0, 0.12, 3))
    index = [np.asarray(t / np.float32(step * s) + np.float32(middle)) for t, s in zip(turned, stretch, strict=True)]
    return ndimage.map_coordinates(depth, index, order=1, mode="nearest") * np.float32(step)


def _cover(
    rng: np.random.Generator, canvas: Canvas, block: Block, center: Points, start: float, length: Points, radius: Points
) -> FloatArray:
    """Share of the block's voxels that bent, tapering tubes fill, which radiate from ``start`` mm off the center."""
    way = rng.normal(size=(len(length), 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    bend = rng.normal(0, 0.06, way.shape) * length[:, None]
    end = way * (start + length)[:, None]
    tubes = Branches(way * start, end, bend, radius, 0.25 * radius, np.ones(len(length), dtype=np.int64))
    points, radii, _ = tubes.sample(0.5)
    cover = np.zeros(canvas.volume[block].shape, dtype=np.float32)
    first = tuple(float(canvas.grid.axis(dimension)[s.start]) for dimension, s in enumerate(block[::-1]))
    paint_tubes(cover, Grid(first, canvas.grid.step, cover.shape), points + center, radii, canvas.sigma)
    return cover


def paint_nodule(rng: np.random.Generator, canvas: Canvas, center: Points, nodule: Nodule) -> tuple[Points, bool]:
    """Paint a nodule.

    Args:
        rng: source of randomness for its shape.
        canvas: where to paint.
        center: position (3,), (x, y, z) in mm.
        nodule: its properties.

    Returns:
        The visible part: center (x, y, z) and diameter of a ball of the same volume, mm (4,), and whether its contrast
        with the tissue around it is sufficient to see it.
    """
    r, sigma = nodule.radius, canvas.sigma
    reach = 2.2 * r
    if nodule.shape is not None:  # a shape nearly fills its cube
        reach = r * (_SHAPE_POINTS + 2) / float(_shapes()["diameter_points"][nodule.shape])
    block, position = canvas.around(center, reach + 3 + nodule.halo)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    turned = [t[0] * position[0] + t[1] * position[1] + t[2] * position[2] for t in turn]
    surface = _ball(rng, nodule, turned) if nodule.shape is None else _outlined(rng, nodule, turned)
    size = 4 * np.array(surface.shape) * np.abs(canvas.grid.step[::-1])
    cells = np.clip(np.rint(size / (2 * r) / 3), 2, 30).astype(int)
    roughness = smooth_noise(rng, surface.shape, cells)
    roughness += 0.5 * smooth_noise(rng, surface.shape, 2 * cells)
    body = surface - np.float32(r * nodule.roughness) * roughness
    blur = float(np.hypot(sigma, nodule.blur))
    there = canvas.volume[block]
    before = there.copy()
    empty = np.clip((-there - np.float32(200)) / 300, 0, 1)  # lung, where a nodule can be seen
    filled = share_inside(body, blur)

    hu: FloatArray | float = nodule.density_hu + 20 * roughness
    if nodule.kind != SOLID:
        hu = nodule.glass_hu + 45 * smooth_noise(rng, body.shape, 3 * cells)
    if nodule.halo:
        canvas.blend(block, share_inside(body - np.float32(nodule.halo / 2), nodule.halo / 2), nodule.glass_hu)
    canvas.blend(block, filled, hu)
    if nodule.kind == PART_SOLID:
        core = body + np.float32(rng.uniform(0.25, 0.65) * r) * (1 + np.float32(0.25) * roughness)
        canvas.fill(block, core, nodule.density_hu)
    for count, longest, thickest in ((nodule.spicules, 0.7 * r + 3, 0.8 + 0.12 * r), (nodule.strands, 18.0, 1.0)):
        if count:
            length = 0.3 * r + rng.uniform(1.0, longest, count)
            radius = rng.uniform(0.4, thickest, count)
            around, _ = canvas.around(center, 0.8 * r + float(length.max()) + 2)
            share = _cover(rng, canvas, around, center, 0.8 * r, length, radius)
            canvas.blend(around, share, nodule.density_hu - (250 if nodule.kind == GROUND_GLASS else 0))
    if nodule.calcium_hu is not None:
        inner = share_inside(body + np.float32((1 - nodule.calcium) * r), sigma)
        canvas.blend(block, inner * filled, nodule.calcium_hu)
    contrast = there - before
    air = np.zeros_like(body)
    if nodule.cavity > 0:
        shift = rng.normal(0, 0.15, 3) * r
        away = np.sqrt(sum((p - np.float32(s)) ** 2 for p, s in zip(position, shift, strict=True)))
        hole = away - np.float32(nodule.cavity * r) * (1 + np.float32(0.2) * roughness)
        # A wall of any thickness, but a wall: what has a thin one all around is a cyst or a bulla.
        wall = np.float32(rng.uniform(0.6, 1.2) + rng.uniform(0.0, 0.2) * r)
        air = share_inside(np.maximum(hole, body + wall).astype(np.float32), sigma)
    if nodule.bronchi:
        length = rng.uniform(0.6, 1.6, nodule.bronchi) * r
        radius = rng.uniform(0.7, 1.6, nodule.bronchi)
        air = np.maximum(air, _cover(rng, canvas, block, center, 0.1 * r, length, radius))
    if nodule.bubbles:
        start, length = rng.uniform(0.1, 0.8) * r, np.full(nodule.bubbles, 0.2)
        radius = rng.uniform(0.5, 0.7 + 0.16 * r, nodule.bubbles)
        air = np.maximum(air, _cover(rng, canvas, block, center, start, length, radius))
    there += np.minimum(np.float32(-930) - there, 0) * air
    seen = (filled * empty).astype(np.float32)
    total = float(seen.sum())
    offset = [float((seen * p).sum()) / max(total, 1e-6) for p in position]
    diameter = 2 * (3 * total * abs(float(np.prod(canvas.grid.step))) / (4 * np.pi)) ** (1 / 3)
    visible = float((seen * contrast).sum()) > _VISIBLE_HU * total
    return np.array([*(center + offset), min(diameter, DIAMETER_MM[1])]), visible
