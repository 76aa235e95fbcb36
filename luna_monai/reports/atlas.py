"""The error atlas: three planes through a candidate, as a radiologist sees them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from luna_monai.scans.geometry import Geometry
from luna_monai.scans.scan import read_scan

#: Lung window: level -600, width 1500 HU.
WINDOW_HU = (-1350.0, 150.0)
FIELD_MM = 60.0
PIXELS = 200
OUTSIDE_HU = -1000.0

#: Name, horizontal axis and vertical axis of each plane, in patient axes (LPS: 0 to the patient's left, 1 to the back,
#: 2 to the head) with the sign in which they grow to the right and downwards on the picture.
PLANES = (("axial", (0, 1), (1, 1)), ("coronal", (0, 1), (2, -1)), ("sagittal", (1, 1), (2, -1)))


@dataclass(frozen=True)
class Plane:
    """One picture.

    Attributes:
        name: ``axial``, ``coronal`` or ``sagittal``.
        png: the picture, ``PIXELS`` by ``PIXELS``, ``FIELD_MM`` wide, the candidate in its middle.
    """

    name: str
    png: bytes


@dataclass(frozen=True)
class Circle:
    """Where a plane cuts a finding, in mm from the picture's upper left corner."""

    x: float
    y: float
    radius: float


class ScanViewer:
    """Cuts pictures out of one CT.

    Args:
        voxels: array (z, y, x), HU.
        geometry: of the array.
    """

    def __init__(self, voxels: np.ndarray, geometry: Geometry) -> None:
        self._voxels, self.geometry = voxels, geometry
        self._index_of_ras = np.linalg.inv(geometry.affine_ras_zyx)

    @classmethod
    def open(cls, path: Path) -> ScanViewer:
        """Look at a CT on disk.

        Args:
            path: the CT.

        Raises:
            LunaError: when it cannot be read.
        """
        scan = read_scan(path, orientation=None)
        return cls(scan.voxels, scan.geometry)

    def planes(self, center: np.ndarray) -> list[Plane]:
        """Cut axial, coronal and sagittal pictures through a point, interpolated to square pixels.

        The planes are the patient's, whatever the orientation of the scan: left is right, as is usual.

        Args:
            center: world position x, y, z (LPS, mm).

        Returns:
            Three pictures in the lung window; what lies outside the scan is shown as air.
        """
        cuts = self.cut(center, outside=OUTSIDE_HU)
        return [Plane(name, _to_png(values)) for (name, _, _), values in zip(PLANES, cuts, strict=True)]

    def cut(self, center: np.ndarray, outside: float) -> list[np.ndarray]:
        """Cut the same planes as :meth:`planes`, as values.

        Args:
            center: world position x, y, z (LPS, mm).
            outside: value of what lies outside the scan.

        Returns:
            Three arrays of ``PIXELS`` by ``PIXELS``.
        """
        # Centres of pixels, from the middle of the picture.
        offsets = (np.arange(PIXELS) + 0.5) * (FIELD_MM / PIXELS) - FIELD_MM / 2
        cuts = []
        for _, (right, right_sign), (down, down_sign) in PLANES:
            points = np.tile(np.asarray(center, dtype=float), (PIXELS, PIXELS, 1))
            points[..., right] += right_sign * offsets[None, :]
            points[..., down] += down_sign * offsets[:, None]
            cuts.append(self._sample(points, outside))
        return cuts

    def _sample(self, points: np.ndarray, outside: float) -> np.ndarray:
        ras = points.reshape(-1, 3) * (-1, -1, 1)
        indices = (ras @ self._index_of_ras[:3, :3].T + self._index_of_ras[:3, 3]).T
        # Only the neighbourhood is taken out of the file that is mapped.
        shape = np.asarray(self._voxels.shape)
        low = np.clip(np.floor(indices.min(axis=1)).astype(int), 0, shape - 1)
        high = np.clip(np.ceil(indices.max(axis=1)).astype(int) + 1, 1, shape)
        block = np.asarray(self._voxels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], dtype=np.float32)
        values = map_coordinates(block, indices - low[:, None], order=1, mode="nearest")
        is_outside = ((indices < -0.5) | (indices > shape[:, None] - 0.5)).any(axis=0)
        return np.where(is_outside, outside, values).reshape(points.shape[:-1])


def circles(center: np.ndarray, finding: np.ndarray, diameter_mm: float) -> list[Circle | None]:
    """Find where the three planes through a candidate cut the sphere of a finding.

    Args:
        center: the candidate, world x, y, z (LPS, mm).
        finding: the finding's centre.
        diameter_mm: its diameter.

    Returns:
        For each of ``PLANES`` a circle, or None where the plane misses it, its middle lies outside the picture or its
        diameter is not known.
    """
    offset = np.asarray(finding, dtype=float) - np.asarray(center, dtype=float)
    result: list[Circle | None] = []
    for _, (right, right_sign), (down, down_sign) in PLANES:
        (across,) = {0, 1, 2} - {right, down}
        squared = (diameter_mm / 2) ** 2 - offset[across] ** 2
        x, y = FIELD_MM / 2 + right_sign * offset[right], FIELD_MM / 2 + down_sign * offset[down]
        if diameter_mm <= 0 or squared <= 0 or not (0 <= x <= FIELD_MM and 0 <= y <= FIELD_MM):
            result.append(None)
        else:
            result.append(Circle(float(x), float(y), math.sqrt(squared)))
    return result


def voxel_of(geometry: Geometry, point: np.ndarray) -> tuple[int, int, int]:
    """Give the voxel z, y, x of a world position."""
    index, row, column = geometry.world_to_index(np.asarray(point, dtype=float)[None])[0]
    return int(index), int(row), int(column)


def _to_png(values_hu: np.ndarray) -> bytes:
    low, high = WINDOW_HU
    grey = np.clip((values_hu - low) / (high - low), 0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.round(grey).astype(np.uint8)).save(buffer, format="png")
    return buffer.getvalue()
