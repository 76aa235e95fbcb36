"""Pictures of a place in a scan: stacks of slices in three planes, with outline and attribution map."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import contourpy
import matplotlib
import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike
from PIL import Image

from luna_monai.detection.grid import to_image
from luna_monai.scans.geometry import Geometry

#: Lung window: level -600, width 1500 HU.
WINDOW_HU = (-1350.0, 150.0)
AIR_HU = -1000.0
FIELD_MM = 60.0
PIXELS = 144
#: How far a stack reaches to both sides of its middle, mm, and how many slices it has at most on each side.
DEPTH_MM, SLICES = 15.0, 15

#: Values (z, y, x) and where they are.
Volume = tuple[np.ndarray, Geometry]


@dataclass(frozen=True)
class Stack:
    """Slices of one plane, one above the other in one picture.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        letters: directions of the patient at the left, right, upper and lower side.
        source: the picture as a ``data:`` address; slices follow each other downwards.
        middle: the slice through the middle, from 0.
        step_mm: distance of the slices.
        height_mm: of a slice, which is ``FIELD_MM`` wide.
        outline: path of SVG in mm over the whole stack; empty where there is no outline.
        heat: the attribution map as a ``data:`` address; empty where there is none.
        positions: of the middle of each slice, LPS mm.
    """

    name: str
    letters: str
    source: str
    middle: int
    step_mm: float
    height_mm: float
    outline: str
    heat: str
    positions: np.ndarray


def draw_stacks(
    voxels: np.ndarray,
    grid: Geometry,
    center: ArrayLike,
    outlined: Volume | None = None,
    heat: np.ndarray | None = None,
) -> list[Stack]:
    """Cut the surroundings of a place out of a scan, in the patient's planes whatever the orientation of the scan.

    Args:
        voxels: (z, y, x) in HU.
        grid: of the voxels.
        center: LPS mm.
        outlined: what is above 0.5 is outlined.
        heat: uint8 in ``grid``.

    Returns:
        Axial, coronal and sagittal stacks; axial slices are those of the scan where its third axis is the body's.
    """
    center = np.asarray(center, dtype=float)
    index = np.round(grid.world_to_continuous_index(center[None]))
    middle = np.array([*center[:2], grid.index_to_world(index)[0, 2]])
    step, pixel = grid.spacing[2], FIELD_MM / PIXELS
    size = (PIXELS, PIXELS, 2 * max(1, int(FIELD_MM / 2 / step)) + 1)
    spacing = (pixel, pixel, step)
    x, y, z = (middle - (np.array(size) - 1) / 2 * spacing).tolist()
    frame = Geometry(size, spacing, (x, y, z), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    low, high = WINDOW_HU
    hu = _resample(*_around(voxels, grid, frame), frame, AIR_HU)
    gray = np.rint(255 * np.clip((hu - low) / (high - low), 0, 1)).astype(np.uint8)
    mask = None if outlined is None else _resample(*outlined, frame, 0.0)
    warm = None if heat is None else _resample(*_around(heat, grid, frame), frame, 0.0) / 255
    return [_stack(axis, gray, mask, warm if warm is not None and warm.any() else None, frame) for axis in range(3)]


def ball(center: ArrayLike, diameter_mm: float) -> Volume:
    """Make what :func:`draw_stacks` outlines as a ball."""
    half = int(diameter_mm / 2) + 2
    distance = np.linalg.norm(np.indices((2 * half + 1,) * 3) - half, axis=0)
    x, y, z = (np.asarray(center, dtype=float) - half).tolist()
    frame = Geometry(distance.shape, (1.0,) * 3, (x, y, z), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    return np.clip(diameter_mm / 2 - distance + 0.5, 0, 1).astype(np.float32), frame


def _around(values: np.ndarray, grid: Geometry, frame: Geometry) -> Volume:
    """Cut out what a frame needs of a scan, with a margin."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(frame.shape) - 1)
    found = grid.world_to_continuous_index(frame.index_to_world(corners))
    low = np.clip(np.floor(found.min(axis=0)).astype(int) - 1, 0, np.array(grid.shape) - 2)
    high = np.clip(np.ceil(found.max(axis=0)).astype(int) + 2, low + 2, grid.shape)
    block = np.ascontiguousarray(values[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], dtype=np.float32)
    x, y, z = grid.index_to_world(low[None])[0].tolist()
    return block, Geometry(block.shape[::-1], grid.spacing, (x, y, z), grid.direction)


def _resample(values: np.ndarray, geometry: Geometry, frame: Geometry, outside: float) -> np.ndarray:
    like = sitk.Image(*frame.size, sitk.sitkFloat32)
    like.SetOrigin(frame.origin)
    like.SetSpacing(frame.spacing)
    image = to_image(values, geometry)
    return sitk.GetArrayFromImage(sitk.Resample(image, like, sitk.Transform(), sitk.sitkLinear, outside))


def _stack(axis: int, gray: np.ndarray, mask: np.ndarray | None, heat: np.ndarray | None, frame: Geometry) -> Stack:
    """Stack the slices across an axis (z, y, x) of the frame."""
    spacing = frame.spacing[2 - axis]
    stride = max(1, round(1.25 / spacing)) if axis else 1
    reach = min(SLICES, int(DEPTH_MM / (spacing * stride)), (frame.shape[axis] - 1) // 2 // stride)
    numbers = (frame.shape[axis] - 1) // 2 + stride * np.arange(-reach, reach + 1)

    def cut(values: np.ndarray) -> np.ndarray:
        slices = np.moveaxis(values, axis, 0)[numbers]
        return slices if axis == 0 else slices[:, ::-1]  # the head is up

    rows, columns = cut(gray).shape[1:]
    row_mm = frame.spacing[1] if axis == 0 else frame.spacing[2]
    positions = np.tile((np.array(frame.shape) - 1) / 2, (len(numbers), 1))
    positions[:, axis] = numbers
    return Stack(
        name=("axial", "coronal", "sagittal")[axis],
        letters=("RLAP", "RLSI", "APSI")[axis],
        source=image_address(cut(gray).reshape(-1, columns)),
        middle=reach,
        step_mm=spacing * stride,
        height_mm=rows * row_mm,
        outline="" if mask is None else _outline(cut(mask), row_mm, FIELD_MM / columns),
        heat="" if heat is None else image_address(heat_colors(cut(heat)[..., ::2].reshape(-1, columns // 2))),
        positions=frame.index_to_world(positions),
    )


def _outline(slices: np.ndarray, row_mm: float, column_mm: float) -> str:
    """Draw the outlines of all slices of a stack as one path of SVG."""
    parts = []
    for number, values in enumerate(slices):
        for line in contourpy.contour_generator(z=values).lines(0.5) if values.max() > 0.5 else ():
            points = (np.asarray(line) + 0.5) * (column_mm, row_mm) + (0, number * len(values) * row_mm)
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Give an attribution map its colors.

    Args:
        values: an array of at least one axis, from 0 to 1.

    Returns:
        The same shape and an axis of four: red, green, blue and opacity, uint8. 0 is clear.
    """
    # The dark end of the color map, which looks like lung, is left out.
    rgba = matplotlib.colormaps["inferno"](0.35 + 0.6 * values, bytes=True)
    rgba[..., 3] = np.rint(255 * 0.7 * np.sqrt(values))
    return rgba


def image_address(values: np.ndarray) -> str:
    """Turn gray or colored pixels, uint8, into a ``data:`` address."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
