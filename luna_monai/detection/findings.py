"""Findings: structures that candidates lie on, with their size, density and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.detection.outlines import find_outline
from luna_monai.scans.geometry import Geometry

#: Voxels above this are soft tissue, those below the second value air in a cavity, HU.
SOFT_TISSUE_HU, CAVITY_HU = -300, -800
#: Less soft tissue than this part of a finding is ground glass; more than the second one is solid.
LITTLE_SOLID, MOSTLY_SOLID = 0.1, 0.7
#: Candidates up to this distance from an outline belong to it, mm.
MARGIN_MM = 2.0
#: How many findings are outlined at most, and how probable they are at least.
MAX_OUTLINES, MIN_PROBABILITY = 30, 0.01

#: Measurements of a finding that are numbers, with the digits that people are shown.
SIZES = {
    "diameter_mm": 1,
    "long_axis_mm": 1,
    "short_axis_mm": 1,
    "volume_mm3": 0,
    "mean_hu": 0,
    "pleura_distance_mm": 1,
}


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
        attenuation: solid, part-solid or ground-glass: a description of the density, not a diagnosis.
        lung: left or right, as the patient sees it.
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
    attenuation: str | None = None
    lung: str | None = None
    pleura_distance_mm: float | None = None
    outline: NDArray[np.bool_] | None = None
    outline_start: tuple[int, int, int] | None = None


def find_findings(
    voxels: np.ndarray, geometry: Geometry, points: ArrayLike, probabilities: ArrayLike, lungs: Lungs | None = None
) -> list[Finding]:
    """Turn the candidates of a scan into findings.

    Candidates are taken from the most to the least probable one. One that lies in the outline of a finding, or whose
    own outline overlaps it, belongs to that finding; another one becomes a new finding.

    Args:
        voxels: HU (z, y, x), finite numbers, turned to LPS.
        geometry: of the scan.
        points: (n, 3) positions of the candidates, x, y, z in LPS mm.
        probabilities: (n,) of the candidates.
        lungs: what :func:`~luna_monai.detection.lungs.find_lungs` found in the scan; looked for when None.

    Returns:
        Findings, the most probable one first; each candidate belongs to one of them.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 3)
    probability = np.asarray(probabilities, dtype=float)
    lungs = lungs or find_lungs(voxels, geometry)
    indices = geometry.world_to_continuous_index(points)
    order = np.argsort(-probability, kind="stable").tolist()
    outlines: list[NDArray[np.intp]] = []
    # The number of the outline, from 1, of voxels and candidates.
    owned, owner = np.zeros(voxels.shape, dtype=np.uint8), np.zeros(len(points), dtype=int)
    for row in order:
        if owner[row] or len(outlines) == MAX_OUTLINES or probability[row] < MIN_PROBABILITY:
            continue
        outline = find_outline(voxels, geometry, indices[row], lungs)
        if len(outline) == 0:
            continue
        # One that shares a third of the smaller of the two is of the same structure.
        sizes = np.minimum([len(one) for one in outlines], len(outline))
        shared = np.bincount(owned[tuple(outline.T)], minlength=len(sizes) + 1)[1:]
        same = np.flatnonzero(3 * shared >= sizes)
        if len(same):
            owner[row] = same[0] + 1
            continue
        outlines.append(outline)
        owned[tuple(outline.T)] = owner[row] = len(outlines)
        # Candidates of higher probability, of which no outline was found, may lie on it.
        away, _ = KDTree(geometry.index_to_world(outline)).query(points, distance_upper_bound=1.01 * MARGIN_MM)
        owner[(owner == 0) & (away <= MARGIN_MM)] = len(outlines)
    groups: dict[int, list[int]] = {}
    for row in order:
        # A candidate without an outline stays alone.
        groups.setdefault(int(owner[row]) or -1 - row, []).append(row)
    findings = []
    for number, rows in groups.items():
        surface, measures = points[rows[:1]], dict[str, Any]()
        if number > 0:
            outline = outlines[number - 1]
            surface, measures = geometry.index_to_world(outline), _measure(voxels, geometry, outline)
        x, y, z = surface.mean(axis=0).tolist()
        findings.append(
            Finding(
                position=(x, y, z),
                probability=float(probability[rows[0]]),
                candidates=tuple(rows),
                lung=lungs.side(surface.mean(axis=0)),
                pleura_distance_mm=lungs.pleura_distance_mm(surface),
                **measures,
            )
        )
    return findings


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


def _measure(voxels: np.ndarray, geometry: Geometry, outline: NDArray[np.intp]) -> dict[str, Any]:
    """Measure a structure, given the indices (n, 3) of its voxels."""
    start = outline.min(axis=0)
    mask = np.zeros(np.ptp(outline, axis=0) + 1, dtype=bool)
    mask[tuple((outline - start).T)] = True
    hu, volume = voxels[tuple(outline.T)], len(outline) * float(np.prod(geometry.spacing))
    # The part of it that is soft tissue, apart from its blurred edge.
    core = ndimage.binary_erosion(mask)[mask] & (hu > CAVITY_HU)
    solid = np.mean(hu[core if core.any() else slice(None)] > SOFT_TISSUE_HU)
    attenuation = ["ground-glass", "part-solid", "solid"][np.searchsorted([LITTLE_SOLID, MOSTLY_SOLID], solid)]
    # The longest diameter in an axial slice, and the one perpendicular to it, from face to face of the voxels.
    angles, spacing = np.deg2rad(np.arange(0, 180, 5)), np.array(geometry.spacing[1::-1])
    ways = np.stack([np.sin(angles), np.cos(angles)])
    layers = [np.argwhere(layer) * spacing @ ways for layer in mask if layer.any()]
    extents = [np.ptp(layer, axis=0) + np.abs(ways).T @ spacing for layer in layers]
    long_axis, short_axis = max((float(one.max()), float(one[(one.argmax() + 18) % 36])) for one in extents)
    return {
        "diameter_mm": float(np.cbrt(6 * volume / np.pi)),
        "long_axis_mm": long_axis,
        "short_axis_mm": short_axis,
        "volume_mm3": volume,
        "mean_hu": float(hu.mean(dtype=float)),
        "attenuation": attenuation,
        "outline": mask,
        "outline_start": tuple(start.tolist()),
    }
