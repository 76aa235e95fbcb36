"""Pictures of a finding: stacks of slices in three planes, with outline and attribution map."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import contourpy
import numpy as np
import SimpleITK as sitk
from PIL import Image

from luna_monai.detection.findings import Finding
from luna_monai.predictions.volumes import to_image
from luna_monai.reports import overlay
from luna_monai.scans.geometry import Geometry

#: Lung window: level -600, width 1500 HU.
WINDOW_HU = (-1350.0, 150.0)
AIR_HU = -1000.0
FIELD_MM = 60.0
PIXELS = 144
#: How far a stack reaches to both sides of the finding, mm, and how many slices it has at most on each side.
DEPTH_MM, SLICES = 15.0, 15


@dataclass(frozen=True)
class Stack:
    """Slices of one plane, one above the other in one picture.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        letters: directions of the patient at the left, right, upper and lower side.
        source: the picture as a ``data:`` address; slices follow each other downwards.
        count: how many slices.
        middle: the slice through the finding, from 0.
        step_mm: distance of the slices.
        height_mm: of a slice, which is ``FIELD_MM`` wide.
        outline: path of SVG in mm over the whole stack; empty where there is no outline.
        heat: the attribution map as a ``data:`` address; empty where there is none.
        positions: of the middle of each slice, LPS mm.
    """

    name: str
    letters: str
    source: str
    count: int
    middle: int
    step_mm: float
    height_mm: float
    outline: str
    heat: str
    positions: np.ndarray


def finding_stacks(voxels: np.ndarray, grid: Geometry, finding: Finding, heat: np.ndarray | None) -> list[Stack]:
    """Cut a finding out of a scan, in the patient's planes whatever the orientation of the scan.

    Args:
        voxels: (z, y, x) in HU, turned to LPS.
        grid: of the voxels.
        finding: with its outline in ``grid``.
        heat: uint8 in ``grid``.

    Returns:
        Axial, coronal and sagittal stacks; axial slices are those of the scan where it is not oblique.
    """
    center = np.asarray(finding.position)
    index = np.round(grid.world_to_continuous_index(center[None])[0])
    middle = np.array([*center[:2], grid.index_to_world(index[None])[0, 2]])
    step, pixel = grid.spacing[2], FIELD_MM / PIXELS
    half = max(1, int(FIELD_MM / 2 / step))
    size = (PIXELS, PIXELS, 2 * half + 1)
    spacing = (pixel, pixel, step)
    origin = middle - (np.array(size) - 1) / 2 * spacing
    frame = Geometry(size, spacing, (origin[0], origin[1], origin[2]), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    hu = _resample(*_around(voxels, grid, frame), frame, AIR_HU)
    low, high = WINDOW_HU
    grey = np.rint(255 * np.clip((hu - low) / (high - low), 0, 1)).astype(np.uint8)
    mask = None
    if finding.outline is not None and finding.outline_start is not None:
        start = grid.index_to_world(np.array([finding.outline_start]) - 1.0)[0]
        padded = np.pad(finding.outline, 1).astype(np.float32)
        box = Geometry(padded.shape[::-1], grid.spacing, (start[0], start[1], start[2]), grid.direction)
        mask = _resample(padded, box, frame, 0.0)
    warm = None if heat is None else _resample(*_around(heat, grid, frame), frame, 0.0) / 255
    return [_stack(axis, grey, mask, warm if warm is not None and warm.any() else None, frame) for axis in range(3)]


def _around(values: np.ndarray, grid: Geometry, frame: Geometry) -> tuple[np.ndarray, Geometry]:
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


def _stack(axis: int, grey: np.ndarray, mask: np.ndarray | None, heat: np.ndarray | None, frame: Geometry) -> Stack:
    """Stack the slices across an axis (z, y, x) of the frame."""
    spacing = frame.spacing[2 - axis]
    stride = max(1, round(1.25 / spacing)) if axis else 1
    reach = min(SLICES, int(DEPTH_MM / (spacing * stride)), (frame.shape[axis] - 1) // 2 // stride)
    middle = (frame.shape[axis] - 1) // 2
    numbers = middle + stride * np.arange(-reach, reach + 1)

    def cut(values: np.ndarray) -> np.ndarray:
        slices = np.moveaxis(values, axis, 0)[numbers]
        return slices if axis == 0 else slices[:, ::-1]  # the head is up

    rows, columns = cut(grey).shape[1:]
    row_mm, column_mm = (frame.spacing[1] if axis == 0 else frame.spacing[2]), frame.spacing[0]
    positions = np.tile((np.array(frame.shape) - 1) / 2, (len(numbers), 1))
    positions[:, axis] = numbers
    return Stack(
        name=("axial", "coronal", "sagittal")[axis],
        letters=("RLAP", "RLSI", "APSI")[axis],
        source=_to_address(cut(grey).reshape(-1, columns)),
        count=len(numbers),
        middle=reach,
        step_mm=spacing * stride,
        height_mm=rows * row_mm,
        outline="" if mask is None else _outline(cut(mask), row_mm, column_mm),
        heat="" if heat is None else _to_address(overlay.colours(cut(heat)[..., ::2].reshape(-1, columns // 2))),
        positions=frame.index_to_world(positions),
    )


def _outline(slices: np.ndarray, row_mm: float, column_mm: float) -> str:
    """Draw the outlines of all slices of a stack as one path of SVG."""
    parts = []
    for number, values in enumerate(slices):
        if values.max() <= 0.5:
            continue
        for line in contourpy.contour_generator(z=values).lines(0.5):
            points = (np.asarray(line) + 0.5) * (column_mm, row_mm) + (0, number * len(values) * row_mm)
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def _to_address(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="webp", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
