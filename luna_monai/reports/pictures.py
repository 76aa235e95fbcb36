"""Pictures of a place in a scan: stacks of slices in three planes, with outline and attribution map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import contourpy
import matplotlib
import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike
from PIL import Image

#: Lung window: level -600, width 1500 HU.
WINDOW_HU = (-1350.0, 150.0)
AIR_HU = -1000.0
FIELD_MM = 60.0
PIXELS = 144
#: How far a stack reaches to both sides of its middle, mm, and how many slices it has at most on each side.
DEPTH_MM, SLICES = 15.0, 15
#: Names of the planes, and the directions of the patient at the left, right, upper and lower side.
PLANES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def draw_stacks(
    scan: sitk.Image, center: ArrayLike, outlined: sitk.Image | None = None, heat: sitk.Image | None = None
) -> list[dict[str, Any]]:
    """Cut the surroundings of a place out of a scan, in the patient's planes whatever the orientation of the scan.

    Args:
        scan: HU.
        center: LPS mm.
        outlined: what is above 0.5 is outlined.
        heat: attribution map, uint8.

    Returns:
        Axial, coronal and sagittal stacks of slices, one above the other in one picture; axial slices are those of the
        scan where its third axis is the body's. ``name`` and ``letters`` as in ``PLANES``; ``source``, the picture as a
        ``data:`` address; ``middle``, the slice through the middle, from 0; ``positions`` (n, 3) of the middles of the
        slices, LPS mm; ``step``, their distance, and ``height`` of a slice, which is ``FIELD_MM`` wide, in mm;
        ``outline``, path of SVG in mm over the whole stack; ``heat``, the attribution map as a ``data:`` address. The
        last two are empty where there is nothing to show.
    """
    middle, step, pixel = np.array(center, dtype=float), scan.GetSpacing()[2], FIELD_MM / PIXELS
    middle[2] = scan.TransformIndexToPhysicalPoint(scan.TransformPhysicalPointToIndex(middle.tolist()))[2]
    spacing = np.array([pixel, pixel, step])
    size = np.array([PIXELS, PIXELS, 2 * max(1, int(FIELD_MM / 2 / step)) + 1])
    origin, upright = (middle - (size - 1) / 2 * spacing).tolist(), np.eye(3).ravel().tolist()

    def resample(image: sitk.Image, outside: float) -> np.ndarray:
        frame = (size.tolist(), sitk.Transform(), sitk.sitkLinear, origin, spacing.tolist(), upright)
        return sitk.GetArrayFromImage(sitk.Resample(image, *frame, outside, sitk.sitkFloat32))

    low, high = WINDOW_HU
    gray = np.rint(255 * np.clip((resample(scan, AIR_HU) - low) / (high - low), 0, 1)).astype(np.uint8)
    mask = np.zeros(gray.shape) if outlined is None else resample(outlined, 0)
    warm = np.zeros(gray.shape) if heat is None else resample(heat, 0) / 255
    stacks = []
    for axis, (name, letters) in enumerate(PLANES.items()):
        stride = max(1, round(1.25 / pixel)) if axis else 1
        between, half = stride * spacing[2 - axis], (gray.shape[axis] - 1) // 2
        reach = min(SLICES, int(DEPTH_MM / between), half // stride)
        offsets = np.arange(-reach, reach + 1)

        def cut(values: np.ndarray, axis: int = axis, numbers: np.ndarray = half + stride * offsets) -> np.ndarray:
            slices = np.moveaxis(values, axis, 0)[numbers]
            return slices[:, ::-1] if axis else slices  # the head is up

        slices, height = cut(gray), spacing[2] if axis else pixel
        stacks.append(
            {
                "name": name,
                "letters": letters,
                "source": image_address(np.concatenate(slices)),
                "middle": reach,
                "positions": middle + np.outer(offsets * between, np.eye(3)[2 - axis]),
                "step": between,
                "height": slices.shape[1] * height,
                "outline": _outline(cut(mask), height),
                "heat": image_address(np.concatenate(heat_colors(cut(warm)[..., ::2]))) if warm.any() else "",
            }
        )
    return stacks


def ball(center: Sequence[float], diameter_mm: float) -> sitk.Image:
    """Make what :func:`draw_stacks` outlines as a ball."""
    half = int(diameter_mm / 2) + 2
    distance = np.linalg.norm(np.indices((2 * half + 1,) * 3) - half, axis=0)
    image = sitk.GetImageFromArray(np.clip(diameter_mm / 2 - distance + 0.5, 0, 1).astype(np.float32))
    image.SetOrigin([float(value) - half for value in center])
    return image


def _outline(slices: np.ndarray, row_mm: float) -> str:
    """Draw the outlines of all slices of a stack as one path of SVG."""
    parts = []
    for number, values in enumerate(slices):
        for line in contourpy.contour_generator(z=values).lines(0.5) if values.max() > 0.5 else ():
            points = (np.asarray(line) + np.array([0.5, 0.5 + number * len(values)])) * (FIELD_MM / PIXELS, row_mm)
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
    return data_address(buffer.getvalue(), "webp")


def data_address(content: bytes, kind: str) -> str:
    """Turn the content of an image file into a ``data:`` address."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
