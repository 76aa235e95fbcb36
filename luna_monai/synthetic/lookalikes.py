"""Structures that look like nodules: pleural plaques, scars, atelectases, infiltrates, lymph nodes and bone."""

import numpy as np

from luna_monai.synthetic.anatomy import Thorax
from luna_monai.synthetic.painting import Canvas
from luna_monai.synthetic.sampling import Points, smooth_noise


def paint_plaque(rng: np.random.Generator, canvas: Canvas, center: Points, normal: Points) -> None:
    """Paint a pleural thickening, which is broad at the wall and has flat edges.

    Args:
        rng: random number generator.
        canvas: the canvas to paint on.
        center: point on the surface of the lung (3,), (x, y, z) in mm.
        normal: unit vector out of the lung (3,).
    """
    breadth, height = rng.uniform(5, 18, 2), rng.uniform(1.2, 4.5)
    block, position = canvas.around(center, float(breadth.max()) + 3)
    frame = np.linalg.qr(np.column_stack([normal, rng.normal(size=(3, 2))]))[0].T.astype(np.float32)
    along = [f[0] * position[0] + f[1] * position[1] + f[2] * position[2] for f in frame]
    flat = np.exp(-((along[1] / breadth[0]) ** 2 + (along[2] / breadth[1]) ** 2) * 2)
    rough = 1 + 0.3 * smooth_noise(rng, canvas.volume[block].shape, (3, 3, 3))
    distance = (np.abs(along[0]) - height * flat * rough + 0.4).astype(np.float32)
    canvas.fill(block, distance, float(rng.uniform(0, 60)))


def paint_sheet(
    rng: np.random.Generator, canvas: Canvas, center: Points, normal: Points, size: tuple[float, ...], hu: float
) -> None:
    """Paint a bent sheet, or a band if it is short in one direction: a scar or a plate-like atelectasis.

    Args:
        rng: random number generator.
        canvas: the canvas to paint on.
        center: center of the sheet (3,), (x, y, z) in mm.
        normal: unit vector out of the lung (3,); the sheet is perpendicular to the surface of the lung.
        size: half of the size along ``normal``, across it, and of the thickness, mm.
        hu: HU of the tissue.
    """
    along_normal, across, thickness = size
    block, position = canvas.around(center, np.hypot(along_normal, across) + 3)
    frame = np.linalg.qr(np.column_stack([normal + rng.normal(0, 0.25, 3), rng.normal(size=(3, 2))]))[0].T
    along = [f[0] * position[0] + f[1] * position[1] + f[2] * position[2] for f in frame.astype(np.float32)]
    wave = smooth_noise(rng, canvas.volume[block].shape, (3, 3, 3))
    bent = along[2] + np.float32(2.0) * wave
    outline = np.maximum(np.abs(along[0]) - along_normal, np.abs(along[1]) - across) + 2 * wave
    uneven = thickness * (1 + 0.5 * smooth_noise(rng, canvas.volume[block].shape, (5, 5, 5)))
    distance = np.maximum(np.abs(bent) - uneven, outline).astype(np.float32)
    canvas.fill(block, distance, hu)


def paint_patch(rng: np.random.Generator, canvas: Canvas, center: Points, radius: float) -> None:
    """Paint an ill-defined patch: an infiltrate, or lung that is not fully aerated.

    Args:
        rng: random number generator.
        canvas: the canvas to paint on.
        center: center of the patch (3,), (x, y, z) in mm.
        radius: radius of the patch, mm.
    """
    stretch = np.exp(rng.normal(0, 0.5, 3))
    block, position = canvas.around(center, 1.5 * radius * float(stretch.max()))
    away = np.sqrt(sum((p / np.float32(s)) ** 2 for p, s in zip(position, stretch, strict=True)))
    # The texture is as strong as the patch, because a smooth round patch would be a ground-glass nodule.
    cells = max(3, round(radius / 2))
    mottled = smooth_noise(rng, away.shape, (3, 3, 3)) + smooth_noise(rng, away.shape, (cells, cells, cells))
    share = np.clip(0.8 - away / radius + 0.5 * mottled, 0, 1) * np.clip(1.5 - away / radius, 0, 1)
    canvas.blend(block, share.astype(np.float32), float(rng.uniform(-650, 20)))


def paint_blob(rng: np.random.Generator, canvas: Canvas, center: Points, radius: float, hu: float) -> None:
    """Paint an ellipsoid: a lymph node or a part of a bone.

    Args:
        rng: random number generator.
        canvas: the canvas to paint on.
        center: center of the ellipsoid (3,), (x, y, z) in mm.
        radius: mean radius, mm.
        hu: HU of the tissue.
    """
    stretch = np.exp(rng.normal(0, 0.25, 3))
    block, position = canvas.around(center, 1.5 * radius * max(1.0, float(stretch.max())) + 2)
    away = np.sqrt(sum((p / np.float32(s)) ** 2 for p, s in zip(position, stretch, strict=True)))
    distance = away - radius * (1 + 0.12 * smooth_noise(rng, away.shape, (3, 3, 3)))
    canvas.fill(block, distance.astype(np.float32), hu)


def paint_lookalikes(
    rng: np.random.Generator, canvas: Canvas, thorax: Thorax, surfaces: dict[str, Points], amount: float
) -> Points:
    """Paint all structures of a scan that look like nodules.

    Args:
        rng: random number generator.
        canvas: the canvas to paint on.
        thorax: the anatomy.
        surfaces: points (n, 3) in mm on ``wall``, ``mediastinum``, ``diaphragm``, ``fissure`` and ``rib``, and inside
            the ``lung``.
        amount: number of structures, as a fraction of the largest number in a whole thorax.

    Returns:
        Centers of the structures (n, 3), (x, y, z) in mm.
    """
    placed = [np.zeros((0, 3))]

    def pick(pool: str, mean: float) -> Points:
        points = surfaces[pool]
        count = rng.poisson(mean * amount) if len(points) else 0
        return points[rng.integers(0, max(len(points), 1), count)]

    for center in pick("wall", 14):
        placed.append(center[None])
        paint_plaque(rng, canvas, center, thorax.normal(center[None])[0])
    # Scars at the pleura, plate-like atelectases above the diaphragm, thickened or fluid-filled fissures.
    for pool, mean, depth, along, across, thick in (
        ("wall", 12, (2, 9), (5, 14), (1.5, 9), 1.3),
        ("diaphragm", 6, (3, 12), (3, 8), (8, 22), 2.0),
        ("fissure", 6, (0, 3), (6, 14), (6, 18), 2.2),
    ):
        for center in pick(pool, mean):
            normal = thorax.normal(center[None])[0]
            inner = center - normal * rng.uniform(*depth)
            placed.append(inner[None])
            reach, hu = (rng.uniform(*along), rng.uniform(*across)), rng.uniform(-300, 40)
            paint_sheet(rng, canvas, inner, normal, (*reach, rng.uniform(0.4, thick)), hu)
    for pool, mean in (("wall", 4), ("lung", 3)):
        for center in pick(pool, mean):
            inner = center - thorax.normal(center[None])[0] * rng.uniform(0, 8)
            placed.append(inner[None])
            paint_patch(rng, canvas, inner, float(rng.uniform(7, 18)))
    # Lymph nodes, rib ends and bone spurs bulge into the lung. A ball that only touches the surface would be a nodule.
    blood = thorax.body.contrast_hu
    for pool, mean, radii, densities in (
        ("mediastinum", 14, (2.5, 7), (45.0, 45.0, blood)),
        ("rib", 10, (2.5, 6), (150.0, 400.0, 800.0)),
    ):
        for center in pick(pool, mean):
            radius = float(rng.uniform(*radii))
            placed.append(center[None])  # its center is behind the surface
            behind = center + thorax.normal(center[None])[0] * radius * rng.uniform(0.55, 1.1)
            paint_blob(rng, canvas, behind, radius, float(rng.choice(densities)))
    return np.concatenate(placed)
