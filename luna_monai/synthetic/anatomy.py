"""A thorax as smooth fields: distances to the lungs and to bone, and what the soft tissue is made of.

Positions are in the patient's mm: x to the left (0 in the midline), y to the back (0 in the middle of the rib cage), z
to the head (0 at the lowest point of the lungs). Distances are signed, mm, negative inside.
"""

import functools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from luna_monai.synthetic.sampling import FloatArray, Grid, Points, Vector, smooth_noise

Position: TypeAlias = tuple[FloatArray, ...]


@dataclass(frozen=True)
class Body:
    """One patient's proportions, mm and HU.

    Args:
        width: half the inner width of the rib cage.
        depth: half its inner depth.
        height: of the lungs.
        fat: thickness of the subcutaneous fat.
        rib_distance: from one rib to the next.
        rib_drop: how much lower a rib's front end is than its back end.
        dome: height of the right and of the left half of the diaphragm.
        mediastinum: scale of the mediastinum's width.
        heart: scale of the heart.
        spine_y: position of the vertebral bodies.
        contrast_hu: blood's HU.
        breast: how far the breasts stand out; 0 for none.
        rib_indent: how far the ribs press into the lungs.
    """

    width: float
    depth: float
    height: float
    fat: float
    rib_distance: float
    rib_drop: float
    dome: tuple[float, float]
    mediastinum: float
    heart: float
    spine_y: float
    contrast_hu: float
    breast: float
    rib_indent: float


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a patient's proportions.

    Args:
        rng: source of randomness.

    Returns:
        The body.
    """
    width = float(np.clip(rng.normal(130, 9), 108, 152))
    depth = width * float(rng.uniform(0.60, 0.76))
    dome = float(rng.uniform(45, 85))
    contrasted = rng.random() < 0.5
    return Body(
        width=width,
        depth=depth,
        height=float(rng.uniform(225, 275)),
        fat=float(rng.uniform(5, 35)),
        rib_distance=float(rng.uniform(22, 27)),
        rib_drop=float(rng.uniform(40, 80)),
        dome=(dome, dome - float(rng.uniform(0, 20))),
        mediastinum=float(rng.uniform(0.9, 1.15)),
        heart=float(rng.uniform(0.85, 1.15)),
        spine_y=depth - float(rng.uniform(15, 24)),
        contrast_hu=float(rng.uniform(130, 380) if contrasted else rng.uniform(35, 55)),
        breast=float(rng.uniform(10, 40) if rng.random() < 0.5 else 0.0),
        rib_indent=float(rng.uniform(0.5, 3.0)),
    )


@dataclass(frozen=True)
class Thorax:
    """A body's fields on a coarse grid (z, y, x).

    Args:
        body: the proportions.
        grid: the coarse grid.
        lung: distance to the lungs, mm.
        cavity: distance to the rib cage's inner wall, mm.
        diaphragm: height above the diaphragm, mm.
        bone: distance to bone, mm.
        soft_hu: HU of all that is neither lung nor bone.
        skin: distance to the skin, mm.
    """

    body: Body
    grid: Grid
    lung: FloatArray
    cavity: FloatArray
    diaphragm: FloatArray
    bone: FloatArray
    soft_hu: FloatArray
    skin: FloatArray

    def normal(self, points: Points) -> Points:
        """Return the unit vectors (n, 3), (x, y, z), that point out of the lung at ``points`` (n, 3), mm."""
        depth = functools.partial(self.grid.value_at, self.lung)
        steps = np.eye(3) * 1.5 * self.grid.step[0]
        normal = np.stack([depth(points + step) - depth(points - step) for step in steps], axis=1)
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)


def _ellipsoid(position: Position, center: Vector, radii: Vector) -> FloatArray:
    """Distance to an ellipsoid (x, y, z), exact at its surface; a cylinder along an axis with an infinite radius."""
    scaled = [((p - c) / r, r) for p, c, r in zip(position, center, radii, strict=True) if np.isfinite(r)]
    first = np.sqrt(sum(s * s for s, _ in scaled) + np.float32(1e-6))
    second = np.sqrt(sum((s / r) ** 2 for s, r in scaled) + np.float32(1e-9))
    return np.asarray(first * (first - 1) / second, dtype=np.float32)


def _smooth_min(a: FloatArray, b: FloatArray, width: float) -> FloatArray:
    """Smallest of two distances, rounded off over ``width`` mm where they meet."""
    blend = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + (a - b) * blend - width * blend * (1 - blend), dtype=np.float32)


def build_thorax(rng: np.random.Generator, body: Body, grid: Grid) -> Thorax:
    """Compute a body's fields.

    Args:
        rng: source of randomness for irregularities.
        body: the proportions.
        grid: where to compute them.

    Returns:
        The thorax.
    """
    cells = (np.asarray(grid.shape) * grid.step[0] / 55).astype(int)
    plain = grid.axes()
    x, y, z = position = tuple(p + 4.0 * smooth_noise(rng, grid.shape, cells) for p in plain)
    mirrored = np.abs(x)

    t = z / body.height
    lateral = np.sqrt(np.clip(1 - np.clip((t - 0.25) / 0.79, 0, 1) ** 3, 0.04, 1))
    sagittal = np.sqrt(np.clip(1 - np.clip((t - 0.3) / 0.76, 0, 1) ** 2.5, 0.04, 1))
    middle = body.width * np.clip(0.16 + 0.30 * np.clip((t - 0.3) / 0.6, 0, 1), 0, 1)
    half_width = np.maximum((body.width - middle) * lateral, 8)
    half_depth = np.maximum(body.depth * sagittal, 8)
    u, v = (mirrored - middle) / half_width, (y - 14 * np.clip(t - 0.3, 0, 1)) / half_depth
    rho = np.sqrt(u * u + v * v + 1e-6)
    slope = np.sqrt((u / half_width) ** 2 + (v / half_depth) ** 2) / rho
    cavity = np.maximum((rho - 1) / slope, z - body.height)

    mediastinum = _mediastinum(position, body, rng)
    dome = np.where(x > 0, body.dome[1], body.dome[0])
    across, along = (mirrored - 0.48 * body.width) / (0.62 * body.width), (y + 0.2 * body.depth) / (1.05 * body.depth)
    roof = dome * (1.12 - (across**2 + along**2)) + 3 * smooth_noise(rng, (1, *grid.shape[1:]), (1, 4, 6))
    diaphragm = ((z - np.maximum(roof, -5)) * 0.8).astype(np.float32)

    bone, height_on_rib = _bones(position, plain, cavity, body)
    front = np.clip(-y / body.depth, 0, 1)
    indent = body.rib_indent * (0.5 + front) * np.exp(-((height_on_rib / 8) ** 2) - (cavity / 12) ** 2)
    lung = np.maximum(np.maximum(cavity + indent, -mediastinum), -diaphragm)
    skin = _skin(position, body)
    soft = _soft_tissue(rng, body, position, (cavity, mediastinum, diaphragm, skin), cells)
    return Thorax(body, grid, lung, cavity, diaphragm, np.maximum(bone, skin + 4), soft, skin)


def _mediastinum(position: Position, body: Body, rng: np.random.Generator) -> FloatArray:
    """Distance to all that separates the lungs: spine, heart, great vessels, hila."""
    m, h, depth, height = body.mediastinum, body.heart, body.depth, body.height
    spine = _ellipsoid(position, (0, body.spine_y + 18, 0), (25, 34, np.inf))
    column = _ellipsoid(position, (0, 0, 0), (29 * m, 0.62 * depth, np.inf))
    front = _ellipsoid(position, (rng.uniform(-6, 6), -0.6 * depth, 0), (9 * m, 0.8 * depth, np.inf))
    heart = _ellipsoid(position, (20 * m, -0.36 * depth, 0.34 * height), (66 * h, 0.58 * depth * h, 0.24 * height * h))
    aorta, arch = _aorta(position, body, 2.5)
    right = _ellipsoid(position, (-38 * m, 4, 0.52 * height), (12, 16, 24))
    left = _ellipsoid(position, (39 * m, 8, 0.56 * height), (12, 16, 22))
    result = spine
    for part, width in ((column, 6), (front, 6), (heart, 6), (aorta, 4), (arch, 4), (right, 6), (left, 6)):
        result = _smooth_min(result, part, width)
    return result


def _aorta(position: Position, body: Body, wall: float) -> tuple[FloatArray, FloatArray]:
    """Distance to the descending aorta and to its arch, in which it ends."""
    back, top = body.spine_y - 16, 0.68 * body.height
    aorta = _ellipsoid(position, (20, back, 0), (12.5 + wall, 12 + wall, np.inf))
    arch = _ellipsoid(position, (15, back / 2 - 12, top), (14 + wall, back / 2 + 24 + wall, 22 + wall))
    return np.maximum(aorta, position[2] - top), arch


def _bones(position: Position, plain: Position, cavity: FloatArray, body: Body) -> tuple[FloatArray, FloatArray]:
    """Distance to ribs, vertebrae, sternum and shoulder blades, and height above the middle of the nearest rib."""
    x, y, z = position
    around = np.arctan2(np.abs(x), y)
    phase = (z + body.rib_drop * (1 - np.cos(around)) / 2) / body.rib_distance
    height = np.asarray((phase - np.rint(phase)) * body.rib_distance, dtype=np.float32)
    ratio = np.sqrt(((cavity - 5.5) / 3.6) ** 2 + (height / 6.5) ** 2 + 1e-4)
    # In front the bone gives way to cartilage.
    ribs = np.maximum((ratio - 1) * 4.2, (around - 2.45) * 40)
    rise = np.abs(z / 24 - np.rint(z / 24)) * 24
    vertebra = np.maximum(_ellipsoid(position, (0, body.spine_y + 4, 0), (18, 15, np.inf)), rise - 9.5)
    mirrored = (np.abs(x), y, rise)
    process = _ellipsoid(mirrored, (22, body.spine_y + 27, 0), (20, 6, 8))
    lamina = _ellipsoid(mirrored, (9, body.spine_y + 33, 0), (10, 5, 9))
    spinous = _ellipsoid(mirrored, (0, body.spine_y + 46, 0), (3.5, 15, 8))
    sternum = _ellipsoid(position, (0, -body.depth - 8, 0), (17, 6, np.inf))
    sternum = np.maximum(sternum, (np.abs(z / body.height - 0.6) - 0.24) * body.height)
    # Shoulder blades are thin plates behind the upper ribs.
    outline = (0.75 * body.width, 0.75 * body.depth, 0.72 * body.height), (42, 45, 62)
    scapula = np.maximum(np.abs(cavity - 22) - 2.2, _ellipsoid((np.abs(plain[0]), *plain[1:]), *outline))
    return functools.reduce(np.minimum, (ribs, vertebra, process, lamina, spinous, sternum, scapula)), height


def _skin(position: Position, body: Body) -> FloatArray:
    """Distance to the skin."""
    x, y, z = np.abs(position[0]), *position[1:]
    shoulder = 1 + 0.45 * np.clip((z / body.height - 0.72) / 0.4, 0, 1)
    half_width, half_depth = (body.width + 24 + body.fat) * shoulder, body.depth + 27 + 0.8 * body.fat
    u, v = x / half_width, np.abs(y - 8) / half_depth
    skin = ((u**2.4 + v**2.4 + 1e-6) ** (1 / 2.4) - 1) * half_depth
    if body.breast > 0:
        breast = _ellipsoid((x, y, z), (68, -half_depth + 12, 0.42 * body.height), (58, body.breast + 14, 52))
        skin = _smooth_min(skin, breast, 10)
    return np.asarray(skin, dtype=np.float32)


def _soft_tissue(
    rng: np.random.Generator, body: Body, position: Position, surfaces: tuple[FloatArray, ...], cells: NDArray[np.int64]
) -> FloatArray:
    """HU of fat, muscle, the mediastinum, the abdomen, and of air and cloth around the body."""
    x, (cavity, mediastinum, diaphragm, skin) = position[0], surfaces
    height, depth = body.height, body.depth
    texture, organs = (smooth_noise(rng, x.shape, cells * finer) for finer in ((3, 4, 4), (2, 2, 2)))
    muscle, fat = np.float32(rng.uniform(45, 65)), np.float32(rng.uniform(-115, -90))
    share = np.clip((-skin - body.fat * 0.8 + 3 * texture) / 5 + 0.5, 0, 1)
    hu = fat + (muscle - fat) * share * (1 - np.clip((texture - 1.0) * 2, 0, 0.8) * (cavity > 9))

    center, radii = (20, -0.36 * depth, 0.34 * height), (60, 0.5 * depth, 0.22 * height)
    heart = _ellipsoid(position, center, (radii[0] * body.heart, radii[1] * body.heart, radii[2] * body.heart))
    vessels = functools.reduce(np.minimum, _aorta(position, body, 0.0), heart)
    vessels = np.minimum(vessels, _ellipsoid(position, (-18, -14, 0.7 * height), (9, 9, 0.3 * height)))
    vessels = np.minimum(vessels, _ellipsoid(position, (5, -8, 0.58 * height), (38, 14, 13)))
    tissue = np.where(texture > -0.2, fat + 15, muscle - 10)
    chamber = np.float32(body.contrast_hu) * (1 - 0.25 * (body.contrast_hu > 80) * (organs > 0.3))
    tissue = tissue + (chamber - tissue) * np.clip(0.5 - vessels / 4, 0, 1)
    hu = hu + (tissue - hu) * np.clip(-mediastinum / 4, 0, 1) * (cavity < 2) * (diaphragm > 0)

    liver = np.float32(rng.uniform(50, 70) + (0.25 * body.contrast_hu if body.contrast_hu > 80 else 0))
    left = np.where(organs > -0.4, np.float32(rng.uniform(35, 60)) + 12 * texture, fat)
    organ = np.where((x < 15) & (diaphragm >= -55), liver, left)
    # Gas in stomach and colon, below the left half of the diaphragm.
    gas = np.clip((organs - rng.uniform(0.7, 1.6)) * 5, 0, 1) * np.clip(-(diaphragm + 9) / 3, 0, 1)
    organ = organ + (np.float32(-900) - organ) * gas * (x > -30) * np.clip(np.abs(texture) * 6 - 0.5, 0, 1)
    hu = hu + (organ - hu) * np.clip(0.5 - diaphragm / 3, 0, 1) * (cavity < 1)

    cloth = np.clip(1 - np.abs(organs + 0.35 * texture) / 0.10, 0, 1) * rng.uniform(20, 130)
    outside = -1000 + cloth * (skin < 45) * (skin > 2)
    return np.asarray(hu + (outside - hu) * np.clip(0.5 + skin / 2.5, 0, 1), dtype=np.float32)
