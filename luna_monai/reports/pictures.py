"""Pictures of a position in a scan: stacks of slices in three planes, with outline and attribution map."""

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
#: Extent of a stack on each side of its middle slice, mm, and largest number of slices on each side.
DEPTH_MM, SLICES = 15.0, 15
#: Names of the planes, and the patient's directions at the left, right, upper and lower edge of a picture.
PLANES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def draw_stacks(
    scan: sitk.Image, center: ArrayLike, outlined: sitk.Image | None = None, heat: sitk.Image | None = None
) -> list[dict[str, Any]]:
    """Draw the surroundings of a position in a scan, in the patient's planes for any orientation of the scan.

    Args:
        scan: the scan in HU.
        center: the position, x, y, z in LPS mm.
        outlined: image whose region above 0.5 is outlined; None for no outline.
        heat: attribution map, uint8; None for no map.

    Returns:
        An axial, a coronal and a sagittal stack of slices. If the third axis of the scan is that of the body, the axial
        slices are those of the scan. Each stack is a dict with these keys:

        - ``name``, ``letters``: see ``PLANES``;
        - ``source``: all slices, one below the other, in one picture, as a ``data:`` URL;
        - ``middle``: index of the slice through ``center``, from 0;
        - ``positions``: centers of the slices, (n, 3), x, y, z in LPS mm;
        - ``step``: distance between slices, mm;
        - ``height``: height of a slice, mm; its width is ``FIELD_MM``;
        - ``outline``: SVG path in mm over the whole stack, or an empty string;
        - ``heat``: picture of the attribution map as a ``data:`` URL, or an empty string.
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
    attribution = np.zeros(gray.shape) if heat is None else resample(heat, 0) / 255
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
                "source": image_url(np.concatenate(slices)),
                "middle": reach,
                "positions": middle + np.outer(offsets * between, np.eye(3)[2 - axis]),
                "step": between,
                "height": slices.shape[1] * height,
                "outline": _outline(cut(mask), height),
                "heat": image_url(np.concatenate(heat_colors(cut(attribution)[..., ::2]))) if attribution.any() else "",
            }
        )
    return stacks


def ball(center: Sequence[float], diameter_mm: float) -> sitk.Image:
    """Make an image of a ball for :func:`draw_stacks`, given its center (x, y, z) in LPS mm and its diameter in mm."""
    half = int(diameter_mm / 2) + 2
    distance = np.linalg.norm(np.indices((2 * half + 1,) * 3) - half, axis=0)
    image = sitk.GetImageFromArray(np.clip(diameter_mm / 2 - distance + 0.5, 0, 1).astype(np.float32))
    image.SetOrigin([float(value) - half for value in center])
    return image


def _outline(slices: np.ndarray, row_mm: float) -> str:
    """Draw the outlines in all slices of a stack as one SVG path."""
    parts = []
    for number, values in enumerate(slices):
        for line in contourpy.contour_generator(z=values).lines(0.5) if values.max() > 0.5 else ():
            points = (np.asarray(line) + np.array([0.5, 0.5 + number * len(values)])) * (FIELD_MM / PIXELS, row_mm)
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(parts)


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Map the values of an attribution map to colors.

    Args:
        values: array with at least one axis, values from 0 to 1.

    Returns:
        RGBA colors, uint8 (..., 4). The value 0 is transparent.
    """
    # The page shows the map as a layer that can be hidden. MONAI's blend_images merges it with the CT. The dark end of
    # the color map is not used, because it looks like lung.
    rgba = matplotlib.colormaps["inferno"](0.35 + 0.6 * values, bytes=True)
    rgba[..., 3] = np.rint(255 * 0.7 * np.sqrt(values))
    return rgba


def image_url(values: np.ndarray) -> str:
    """Encode gray or color pixels, uint8, as a ``data:`` URL."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="webp", quality=80)
    return data_url(buffer.getvalue(), "webp")


def data_url(content: bytes, kind: str) -> str:
    """Encode the content of an image file as a ``data:`` URL."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
