"""Findings: structures that candidates lie on, with their size, density and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luna_monai.detection.lungs import Lungs
from luna_monai.detection.outlines import Outline, find_outline
from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

Attenuation = Literal["solid", "part-solid", "ground-glass"]
Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Finding:
    """A structure that one or several candidates lie on.

    Sizes, density and outline are None where no outline is found, for example in a smudge on a vessel.

    Attributes:
        position: center of mass (x, y, z) in LPS mm; that of the most probable candidate when there is no outline.
        probability: the highest of its candidates.
        candidates: indices of its candidates, the most probable one first.
        diameter_mm: diameter of a ball of the same volume.
        long_axis_mm: longest diameter in an axial slice.
        short_axis_mm: longest diameter perpendicular to it in the same slice.
        volume_mm3: volume of the outline.
        mean_hu: mean of the voxels in the outline, HU.
        attenuation: a description of the density, not a diagnosis.
        lung: the side of the body, as the patient sees it.
        pleura_distance_mm: shortest distance between the outline, or the position, and the surface of the lungs.
        outline: bool (z, y, x), a box around the structure in the grid of the scan.
        outline_start: index (z, y, x) of the first voxel of ``outline`` in the scan.
    """

    position: tuple[float, float, float]
    probability: float
    candidates: tuple[int, ...]
    diameter_mm: float | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    volume_mm3: float | None = None
    mean_hu: float | None = None
    attenuation: Attenuation | None = None
    lung: Side | None = None
    pleura_distance_mm: float | None = None
    outline: NDArray[np.bool_] | None = None
    outline_start: tuple[int, int, int] | None = None


class FindingFinder:
    """Turn candidates into findings.

    Candidates are taken from the most to the least probable one. One that lies in the outline of a finding, or whose
    own outline overlaps it, belongs to that finding; another one becomes a new finding.

    Args:
        max_outlines: how many findings are outlined at most, the most probable ones.
        margin_mm: candidates up to this distance from an outline belong to it.

    Raises:
        LunaError: when an argument is out of its range.
    """

    def __init__(self, *, max_outlines: int = 100, margin_mm: float = 2.0) -> None:
        if max_outlines < 0:
            raise LunaError(f"max_outlines must be 0 or more, found {max_outlines}")
        if not margin_mm >= 0:
            raise LunaError(f"margin_mm must be 0 or more, found {margin_mm}")
        self.max_outlines = max_outlines
        self.margin_mm = margin_mm

    def __call__(
        self,
        voxels: np.ndarray,
        geometry: Geometry,
        points: np.ndarray,
        probabilities: Sequence[float] | np.ndarray,
        lungs: Lungs | None = None,
    ) -> list[Finding]:
        """Turn the candidates of a scan into findings.

        Args:
            voxels: HU (z, y, x), whole numbers or floats.
            geometry: of the scan.
            points: (n, 3) positions of the candidates, x, y, z in LPS mm.
            probabilities: (n,) of the candidates.
            lungs: what :func:`~luna_monai.detection.lungs.find_lungs` found in the scan. Without it, ``lung`` and
                ``pleura_distance_mm`` are None, and structures on the pleura are cut by their shape alone.

        Returns:
            Findings, the most probable one first; each candidate belongs to one of them.

        Raises:
            LunaError: when the arguments do not belong together.
        """
        points = np.asarray(points, dtype=float).reshape(-1, 3)
        probability = np.asarray(probabilities, dtype=float)
        if voxels.shape != geometry.shape:
            raise LunaError(f"a volume of {voxels.shape} voxels (z, y, x) with a geometry of {geometry.shape}")
        if probability.shape != (len(points),):
            raise LunaError(f"{len(points)} candidates with {probability.size} probabilities")
        order = np.argsort(-probability, kind="stable")
        groups: list[tuple[list[int], Outline | None]] = []
        for row in order.tolist():
            index = geometry.world_to_continuous_index(points[row])[0]
            near = [group for group in groups if group[1] is not None and group[1].distance_mm(index) <= self.margin_mm]
            if near:
                near[0][0].append(row)
                continue
            outlined = sum(outline is not None for _, outline in groups)
            outline = find_outline(voxels, geometry, index, lungs) if outlined < self.max_outlines else None
            same = next((group for group in groups if _overlap(outline, group[1])), None)
            if same is not None:
                same[0].append(row)
            else:
                groups.append(([row], outline))
        return [_measure(voxels, geometry, points, probability, rows, outline) for rows, outline in groups]


def find_findings(
    voxels: np.ndarray,
    geometry: Geometry,
    points: np.ndarray,
    probabilities: Sequence[float] | np.ndarray,
    lungs: Lungs | None = None,
) -> list[Finding]:
    """Turn the candidates of a scan into findings, with the defaults of :class:`FindingFinder`."""
    return FindingFinder()(voxels, geometry, points, probabilities, lungs)


def _overlap(one: Outline | None, other: Outline | None) -> bool:
    """Tell whether there are two outlines that overlap."""
    return one is not None and other is not None and one.overlaps(other)


def _measure(
    voxels: np.ndarray,
    geometry: Geometry,
    points: np.ndarray,
    probability: np.ndarray,
    rows: list[int],
    outline: Outline | None,
) -> Finding:
    """Describe a finding."""
    x, y, z = points[rows[0]].tolist()
    if outline is None:
        return Finding((x, y, z), float(probability[rows[0]]), tuple(rows))
    inside = np.argwhere(outline.mask)
    x, y, z = geometry.index_to_world(inside.mean(axis=0) + outline.start)[0].tolist()
    volume = len(inside) * float(np.prod(geometry.spacing))
    hu = voxels[outline.box][outline.mask].astype(float)
    long_axis, short_axis = _axes(outline.mask, geometry)
    return Finding(
        position=(x, y, z),
        probability=float(probability[rows[0]]),
        candidates=tuple(rows),
        diameter_mm=float(np.cbrt(6 * volume / np.pi)),
        long_axis_mm=long_axis,
        short_axis_mm=short_axis,
        volume_mm3=volume,
        mean_hu=float(hu.mean()),
        attenuation=_attenuation(hu),
        outline=outline.mask,
        outline_start=outline.start,
    )


def _attenuation(hu: np.ndarray) -> Attenuation:
    """Describe the density of a structure by how much of it is soft tissue."""
    solid = float(np.mean(hu > -300))
    return "solid" if solid > 0.6 else "part-solid" if solid > 0.1 else "ground-glass"


def _axes(mask: NDArray[np.bool_], geometry: Geometry) -> tuple[float, float]:
    """Measure the longest diameter in an axial slice, and the longest one perpendicular to it."""
    angles = np.deg2rad(np.arange(0, 180, 5))
    ways = np.stack([np.sin(angles), np.cos(angles)])
    best = (0.0, 0.0)
    for layer in mask:
        if layer.any():
            along = np.argwhere(layer) * geometry.spacing[1::-1] @ ways
            extent = np.ptp(along, axis=0) + geometry.spacing[0]
            longest = int(extent.argmax())
            best = max(best, (float(extent[longest]), float(extent[(longest + 18) % 36])))
    return best
