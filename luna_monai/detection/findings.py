"""Findings: structures that candidates lie on, with their size, density and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.lungs import Lungs, body_axis, find_lungs
from luna_monai.detection.outlines import Outline, find_outline
from luna_monai.scans.geometry import Geometry

#: Voxels above this are soft tissue, those below the second value air in a cavity, HU.
SOFT_TISSUE_HU, CAVITY_HU = -300, -800
#: Less soft tissue than this part of a finding is ground glass; more than the second one is solid.
LITTLE_SOLID, MOSTLY_SOLID = 0.1, 0.7

#: Candidates up to this distance from an outline belong to it, mm.
MARGIN_MM = 2.0

#: Measurements of a finding that are numbers, with the digits that people are shown.
SIZES = {
    "diameter_mm": 1,
    "long_axis_mm": 1,
    "short_axis_mm": 1,
    "volume_mm3": 0,
    "mean_hu": 0,
    "pleura_distance_mm": 1,
}
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
        pleura_distance_mm: shortest distance between the outline, or the position, and the surface of the lungs,
            to about 2 mm.
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


def find_findings(
    voxels: np.ndarray,
    geometry: Geometry,
    points: np.ndarray,
    probabilities: Sequence[float] | np.ndarray,
    lungs: Lungs | None = None,
    *,
    max_outlines: int = 50,
    min_probability: float = 0.01,
) -> list[Finding]:
    """Turn the candidates of a scan into findings.

    Candidates are taken from the most to the least probable one. One that lies in the outline of a finding, or whose
    own outline overlaps it, belongs to that finding; another one becomes a new finding.

    Args:
        voxels: HU (z, y, x), finite numbers.
        geometry: of the scan.
        points: (n, 3) positions of the candidates, x, y, z in LPS mm.
        probabilities: (n,) of the candidates.
        lungs: what :func:`~luna_monai.detection.lungs.find_lungs` found in the scan; looked for when None.
        max_outlines: how many findings are outlined at most, the most probable ones.
        min_probability: less probable findings are not outlined.

    Returns:
        Findings, the most probable one first; each candidate belongs to one of them.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 3)
    probability = np.asarray(probabilities, dtype=float)
    if len(points) == 0:
        return []
    lungs = lungs or find_lungs(voxels, geometry)
    indices = geometry.world_to_continuous_index(points)
    order = np.argsort(-probability, kind="stable")
    outlines: list[Outline] = []
    owner = np.full(len(points), -1)
    for row in order:
        if owner[row] >= 0 or len(outlines) == max_outlines or probability[row] < min_probability:
            continue
        outline = find_outline(voxels, geometry, indices[row], lungs)
        if outline is None:
            continue
        owner[row] = next((k for k, one in enumerate(outlines) if one.overlaps(outline)), len(outlines))
        if owner[row] == len(outlines):
            outlines.append(outline)
            # Candidates of higher probability, of which no outline was found, may lie on it.
            owner[(owner < 0) & outline.near(indices, MARGIN_MM)] = owner[row]
    groups: dict[int, list[int]] = {}
    for row in order.tolist():
        # A candidate without an outline stays alone.
        groups.setdefault(int(owner[row]) if owner[row] >= 0 else -1 - row, []).append(row)
    return [
        _describe(voxels, geometry, points, probability, rows, outlines[key] if key >= 0 else None, lungs)
        for key, rows in groups.items()
    ]


def findings_table(findings: Sequence[Finding], seriesuid: str) -> pd.DataFrame:
    """Make a table of findings, whose first columns are a submission for LUNA16's evaluation of proposals.

    Args:
        findings: of a scan.
        seriesuid: of the scan.

    Returns:
        One row a finding: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (LPS, mm), ``probability``, ``SIZES``,
        ``attenuation``, ``lung`` and ``candidates``, their number. What is not known is NaN or None.
    """
    names = [*SIZES, "attenuation", "lung"]
    rows = [
        (seriesuid, *one.position, one.probability, *(getattr(one, name) for name in names), len(one.candidates))
        for one in findings
    ]
    table = pd.DataFrame(rows, columns=["seriesuid", *COORDINATES, "probability", *names, "candidates"])
    return table.astype(dict.fromkeys((*COORDINATES, "probability", *SIZES), float))


def _describe(
    voxels: np.ndarray,
    geometry: Geometry,
    points: np.ndarray,
    probability: np.ndarray,
    rows: list[int],
    outline: Outline | None,
    lungs: Lungs,
) -> Finding:
    """Describe a finding, given the rows of its candidates."""
    first = rows[0]
    position, surface = points[first], points[first][None]
    measures: dict[str, Any] = {}
    if outline is not None:
        inside = np.argwhere(outline.mask)
        position = geometry.index_to_world(inside.mean(axis=0) + outline.start)[0]
        surface = geometry.index_to_world(inside + outline.start)
        volume = len(inside) * float(np.prod(geometry.spacing))
        long_axis, short_axis = _axes(outline.mask, geometry)
        hu = voxels[outline.box]
        measures = {
            "diameter_mm": float(np.cbrt(6 * volume / np.pi)),
            "long_axis_mm": long_axis,
            "short_axis_mm": short_axis,
            "volume_mm3": volume,
            "mean_hu": float(hu[outline.mask].mean(dtype=float)),
            "attenuation": _attenuation(hu, outline.mask),
            "outline": outline.mask,
            "outline_start": outline.start,
        }
    x, y, z = position.tolist()
    return Finding(
        position=(x, y, z),
        probability=float(probability[first]),
        candidates=tuple(rows),
        lung=lungs.side(position),
        pleura_distance_mm=lungs.pleura_distance_mm(surface),
        **measures,
    )


def _attenuation(hu: np.ndarray, mask: NDArray[np.bool_]) -> Attenuation:
    """Describe the density of a structure by the part of it that is soft tissue, apart from its blurred edge."""
    core = ndimage.binary_erosion(mask) & (hu > CAVITY_HU)
    solid = float(np.mean(hu[core if core.any() else mask] > SOFT_TISSUE_HU))
    return "solid" if solid > MOSTLY_SOLID else "part-solid" if solid > LITTLE_SOLID else "ground-glass"


def _axes(mask: NDArray[np.bool_], geometry: Geometry) -> tuple[float, float]:
    """Measure the longest diameter in an axial slice, and the longest one perpendicular to it."""
    axial = body_axis(geometry)
    spacing = np.delete(np.array(geometry.spacing[::-1]), axial)
    angles = np.deg2rad(np.arange(0, 180, 5))
    ways = np.stack([np.sin(angles), np.cos(angles)])
    # From face to face of the voxels, not from center to center.
    width = np.abs(ways).T @ spacing
    best = (0.0, 0.0)
    for layer in np.moveaxis(mask, axial, 0):
        if layer.any():
            extent = np.ptp(np.argwhere(layer) * spacing @ ways, axis=0) + width
            longest = int(extent.argmax())
            best = max(best, (float(extent[longest]), float(extent[(longest + 18) % 36])))
    return best
