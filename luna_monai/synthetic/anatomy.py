"""A thorax as smooth fields: distances to the lungs and to bone, and what the soft tissue is made of.

Positions are in the patient's mm: x to the left (0 in the midline), y to the back (0 in the middle of the rib cage), z
to the head (0 at the lowest point of the lungs). Distances are signed, mm, negative inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luna_monai.synthetic.sampling import FloatArray, Grid, smooth_noise


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

    def normal(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the unit vectors (n, 3), (x, y, z), that point out of the lung at ``points`` (n, 3), mm."""
        steps = np.eye(3) * 1.5 * self.grid.step[0]
        ahead = np.stack([self.grid.value_at(self.lung, points + step) for step in steps], axis=1)
        behind = np.stack([self.grid.value_at(self.lung, points - step) for step in steps], axis=1)
        normal = ahead - behind
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)


def _ellipsoid(
    position: tuple[FloatArray, FloatArray, FloatArray],
    center: tuple[float, float, float],
    radii: tuple[float, float, float],
) -> FloatArray:
    """Distance to an ellipsoid (x, y, z), exact at its surface; a cylinder along an axis with an infinite radius."""
    scaled = [(p - c) / r for p, c, r in zip(position, center, radii, strict=True) if np.isfinite(r)]
    finite = [r for r in radii if np.isfinite(r)]
    first = np.sqrt(sum(s * s for s in scaled) + np.float32(1e-6))
    second = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, finite, strict=True)) + np.float32(1e-9))
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
    size = np.asarray(grid.shape) * grid.step[0]
    cells = (int(size[0] / 55), int(size[1] / 55), int(size[2] / 55))
    plain = grid.axes()
    x, y, z = (p + 4.0 * smooth_noise(rng, grid.shape, cells) for p in plain)
    side = np.where(x > 0, 1.0, -1.0).astype(np.float32)
    mirrored = np.abs(x)
    position = (x, y, z)

    t = (z / body.height).astype(np.float32)
    lateral = np.sqrt(np.clip(1 - np.clip((t - 0.25) / 0.79, 0, 1) ** 3, 0.04, 1))
    sagittal = np.sqrt(np.clip(1 - np.clip((t - 0.3) / 0.76, 0, 1) ** 2.5, 0.04, 1))
    middle = body.width * np.clip(0.16 + 0.30 * np.clip((t - 0.3) / 0.6, 0, 1), 0, 1)
    half_width = np.maximum((body.width - middle) * lateral, 8)
    half_depth = np.maximum(body.depth * sagittal, 8)
    u, v = (mirrored - middle) / half_width, (y - 14 * np.clip(t - 0.3, 0, 1)) / half_depth
    rho = np.sqrt(u * u + v * v + 1e-6)
    slope = np.sqrt((u / half_width) ** 2 + (v / half_depth) ** 2) / rho
    cavity = np.maximum((rho - 1) / slope, z - body.height).astype(np.float32)

    mediastinum = _mediastinum(position, body, rng)
    dome = np.where(side < 0, body.dome[0], body.dome[1])
    off_center = ((mirrored - 0.48 * body.width) / (0.62 * body.width)) ** 2 + (
        (y + 0.2 * body.depth) / (1.05 * body.depth)
    ) ** 2
    roof = dome * (1.12 - off_center) + 3 * smooth_noise(rng, (1, *grid.shape[1:]), (1, 4, 6))
    diaphragm = ((z - np.maximum(roof, -5)) * 0.8).astype(np.float32)

    ribs, height_on_rib = _ribs(position, cavity, body)
    front = np.clip(-y / body.depth, 0, 1)
    indent = body.rib_indent * (0.5 + front) * np.exp(-((height_on_rib / 8) ** 2) - (cavity / 12) ** 2)
    lung = np.maximum(np.maximum(cavity + indent, -mediastinum), -diaphragm).astype(np.float32)

    skin = _skin(position, body)
    bone = np.minimum(ribs, _central_bones(position, body, t))
    bone = np.maximum(np.minimum(bone, _scapula(plain, body, cavity)), skin + 4)
    soft = _soft_tissue(rng, grid, position, body, cavity, mediastinum, diaphragm, skin, cells)
    return Thorax(body, grid, lung, cavity, diaphragm, bone.astype(np.float32), soft, skin)


def _mediastinum(position: tuple[Any, Any, Any], body: Body, rng: np.random.Generator) -> FloatArray:
    """Distance to all that separates the lungs: spine, heart, great vessels, hila."""
    m, h, height = body.mediastinum, body.heart, body.height
    infinite = float("inf")
    spine = _ellipsoid(position, (0, body.spine_y + 18, 0), (25, 34, infinite))
    column = _ellipsoid(position, (0, 0, 0), (29 * m, 0.62 * body.depth, infinite))
    front = _ellipsoid(position, (rng.uniform(-6, 6), -0.6 * body.depth, 0), (9 * m, 0.8 * body.depth, infinite))
    heart = _ellipsoid(
        position,
        (20 * m, -0.36 * body.depth, 0.34 * height),
        (66 * h, 0.58 * body.depth * h, 0.24 * height * h),
    )
    aorta = _ellipsoid(position, (20, body.spine_y - 16, 0), (15, 14, infinite))
    aorta = np.maximum(aorta, position[2] - 0.76 * height)
    arch = _ellipsoid(position, (15, 0, 0.74 * height), (22, 38, 15))
    right = _ellipsoid(position, (-38 * m, 4, 0.52 * height), (12, 16, 24))
    left = _ellipsoid(position, (39 * m, 8, 0.56 * height), (12, 16, 22))
    result = _smooth_min(spine, column, 6)
    for part, width in ((front, 6), (heart, 6), (aorta, 4), (arch, 4), (right, 6), (left, 6)):
        result = _smooth_min(result, part, width)
    return result


def _ribs(position: tuple[Any, Any, Any], cavity: FloatArray, body: Body) -> tuple[FloatArray, FloatArray]:
    """Distance to the ribs, and height above the middle of the nearest rib."""
    x, y, z = position
    around = np.arctan2(np.abs(x), y)
    drop = body.rib_drop * (1 - np.cos(around)) / 2
    phase = (z + drop) / body.rib_distance
    height = (phase - np.rint(phase)) * body.rib_distance
    depth_in_wall = cavity - 5.5
    ratio = np.sqrt((depth_in_wall / 3.6) ** 2 + (height / 6.5) ** 2 + 1e-4)
    ribs = (ratio - 1) * 4.2
    # In front the bone gives way to cartilage.
    return np.maximum(ribs, (around - 2.45) * 40).astype(np.float32), height.astype(np.float32)


def _central_bones(position: tuple[Any, Any, Any], body: Body, t: FloatArray) -> FloatArray:
    """Distance to vertebrae and sternum."""
    x, y, z = position
    infinite = float("inf")
    rise = np.abs(z / 24 - np.rint(z / 24)) * 24
    vertebra = np.maximum(_ellipsoid(position, (0, body.spine_y + 4, 0), (18, 15, infinite)), rise - 9.5)
    mirrored = (np.abs(x), y, rise)
    process = _ellipsoid(mirrored, (22, body.spine_y + 27, 0), (20, 6, 8))
    lamina = _ellipsoid(mirrored, (9, body.spine_y + 33, 0), (10, 5, 9))
    spinous = _ellipsoid(mirrored, (0, body.spine_y + 46, 0), (3.5, 15, 8))
    sternum = _ellipsoid(position, (0, -body.depth - 8, 0), (17, 6, infinite))
    sternum = np.maximum(sternum, (np.abs(t - 0.6) - 0.24) * body.height)
    result = vertebra
    for part in (process, lamina, spinous, sternum):
        result = np.minimum(result, part)
    return result


def _scapula(position: tuple[Any, Any, Any], body: Body, cavity: FloatArray) -> FloatArray:
    """Distance to the shoulder blades: thin plates behind the upper ribs."""
    x, y, z = position
    plate = np.abs(cavity - 22) - 2.2
    outline = _ellipsoid((np.abs(x), y, z), (0.75 * body.width, 0.75 * body.depth, 0.72 * body.height), (42, 45, 62))
    return np.maximum(plate, outline)


def _skin(position: tuple[Any, Any, Any], body: Body) -> FloatArray:
    """Distance to the skin."""
    x, y, z = position
    t = z / body.height
    shoulder = 1 + 0.45 * np.clip((t - 0.72) / 0.4, 0, 1)
    half_width, half_depth = (body.width + 24 + body.fat) * shoulder, body.depth + 27 + 0.8 * body.fat
    u, v = np.abs(x) / half_width, np.abs(y - 8) / half_depth
    rho = (u**2.4 + v**2.4 + 1e-6) ** (1 / 2.4)
    skin = (rho - 1) * half_depth
    if body.breast > 0:
        mirrored = (np.abs(x), y, z)
        breast = _ellipsoid(mirrored, (68, -half_depth + 12, 0.42 * body.height), (58, body.breast + 14, 52))
        skin = _smooth_min(skin.astype(np.float32), breast, 10)
    return np.asarray(skin, dtype=np.float32)


def _soft_tissue(
    rng: np.random.Generator,
    grid: Grid,
    position: tuple[Any, Any, Any],
    body: Body,
    cavity: FloatArray,
    mediastinum: FloatArray,
    diaphragm: FloatArray,
    skin: FloatArray,
    cells: tuple[int, int, int],
) -> FloatArray:
    """HU of fat, muscle, the mediastinum, the abdomen, and of air and cloth around the body."""
    x = position[0]
    height = body.height
    texture = smooth_noise(rng, grid.shape, (3 * cells[0], 4 * cells[1], 4 * cells[2]))
    organs = smooth_noise(rng, grid.shape, (2 * cells[0], 2 * cells[1], 2 * cells[2]))
    muscle = np.float32(rng.uniform(45, 65))
    fat = np.float32(rng.uniform(-115, -90))
    share = np.clip((-skin - body.fat * 0.8 + 3 * texture) / 5 + 0.5, 0, 1)
    between = np.clip((texture - 1.0) * 2, 0, 0.8) * (cavity > 9)
    hu = fat + (muscle - fat) * share * (1 - between)

    blood = np.float32(body.contrast_hu)
    heart = _ellipsoid(
        position,
        (20, -0.36 * body.depth, 0.34 * height),
        (60 * body.heart, 0.5 * body.depth * body.heart, 0.22 * height * body.heart),
    )
    vessels = np.minimum(heart, _ellipsoid(position, (20, body.spine_y - 16, 0), (12.5, 12, float("inf"))))
    vessels = np.maximum(vessels, (position[2] - 0.76 * height))
    vessels = np.minimum(vessels, _ellipsoid(position, (14, 0, 0.74 * height), (19, 34, 12)))
    vessels = np.minimum(vessels, _ellipsoid(position, (-18, -14, 0.7 * height), (9, 9, 0.3 * height)))
    vessels = np.minimum(vessels, _ellipsoid(position, (5, -8, 0.58 * height), (38, 14, 13)))
    inside = np.clip(-mediastinum / 4, 0, 1) * (cavity < 2) * (diaphragm > 0)
    tissue = np.where(texture > -0.2, fat + 15, muscle - 10)
    chamber = blood * (1 - 0.25 * (blood > 80) * (organs > 0.3))
    tissue = tissue + (chamber - tissue) * np.clip(0.5 - vessels / 4, 0, 1)
    hu = hu + (tissue - hu) * inside

    abdomen = np.clip(0.5 - diaphragm / 3, 0, 1) * (cavity < 1)
    liver = np.float32(rng.uniform(50, 70) + (0.25 * body.contrast_hu if body.contrast_hu > 80 else 0))
    left = np.where(organs > -0.4, np.float32(rng.uniform(35, 60)) + 12 * texture, fat)
    organ = np.where(x < 15, np.where(diaphragm < -55, left, liver), left)
    # Gas in stomach and colon, below the left half of the diaphragm.
    gas_amount = np.clip((organs - rng.uniform(0.7, 1.6)) * 5, 0, 1) * np.clip(-(diaphragm + 9) / 3, 0, 1)
    gas = np.clip(gas_amount * (x > -30) * (np.abs(texture) > 0.15), 0, 1)
    organ = organ + (np.float32(-900) - organ) * gas
    hu = hu + (organ - hu) * abdomen

    cloth = np.clip(1 - np.abs(organs + 0.35 * texture) / 0.10, 0, 1) * rng.uniform(20, 130)
    outside = -1000 + cloth * (skin < 45) * (skin > 2)
    hu = hu + (outside - hu) * np.clip(0.5 + skin / 2.5, 0, 1)
    return np.asarray(hu, dtype=np.float32)
