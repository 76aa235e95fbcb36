"""Findings: structures that contain one or more candidates, with their size, density and position."""

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

#: Voxels above the first value are soft tissue, voxels below the second are air in a cavity, HU.
SOFT_TISSUE_HU, CAVITY_HU = -300, -800
#: A finding is ground-glass if its fraction of soft tissue is below the first value, and solid if above the second.
LITTLE_SOLID, MOSTLY_SOLID = 0.1, 0.7
#: Candidates within this distance of an outline belong to its finding, mm.
MARGIN_MM = 2.0
#: Defaults for the largest number of findings that are outlined, and for the lowest probability of their candidates.
MAX_OUTLINES, MIN_PROBABILITY = 30, 0.01

#: Numeric measurements of a finding, with the number of decimals in tables and pages.
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
    """A structure that contains one or more candidates.

    Sizes, density and outline are None if no outline is found, for example at a blurred vessel.

    Attributes:
        position: center of mass (x, y, z) in LPS mm; without an outline, the position of the most probable candidate.
        probability: highest probability of the candidates.
        candidates: indices of the candidates, most probable first.
        diameter_mm: diameter of the sphere of equal volume, mm.
        long_axis_mm: longest diameter in an axial slice, mm.
        short_axis_mm: longest diameter perpendicular to the long axis in the same slice, mm.
        volume_mm3: volume of the outline, mm3.
        mean_hu: mean of the voxels in the outline, HU.
        attenuation: ``solid``, ``part-solid`` or ``ground-glass``; a description of the density, not a diagnosis.
        lung: ``left`` or ``right`` of the patient.
        pleura_distance_mm: shortest distance from the outline, or from the position without an outline, to the surface
            of the lungs, mm; accurate to about 2 mm.
        outline: mask, bool (z, y, x), of a box around the structure in the voxel grid of the scan.
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
    voxels: np.ndarray,
    geometry: Geometry,
    points: ArrayLike,
    probabilities: ArrayLike,
    lungs: Lungs | None = None,
    max_outlines: int = MAX_OUTLINES,
    min_probability: float = MIN_PROBABILITY,
) -> list[Finding]:
    """Group the candidates of a scan into findings.

    Candidates are processed from the most to the least probable one. A candidate that lies in the outline of a finding,
    or whose own outline overlaps it, is added to that finding. Any other candidate becomes a new finding.

    Args:
        voxels: HU (z, y, x), finite numbers, oriented to LPS.
        geometry: geometry of ``voxels``.
        points: positions of the candidates, (n, 3), x, y, z in LPS mm.
        probabilities: probabilities of the candidates, (n,).
        lungs: result of :func:`~luna_monai.detection.lungs.find_lungs` for the scan; None to compute it.
        max_outlines: largest number of findings that are outlined, from the most probable one.
        min_probability: candidates with a lower probability are not outlined.

    Returns:
        Findings, most probable first. Each candidate belongs to exactly one finding.
    """
    points = np.asarray(points, dtype=float).reshape(-1, 3)
    probability = np.asarray(probabilities, dtype=float)
    lungs = lungs or find_lungs(voxels, geometry)
    indices = geometry.world_to_continuous_index(points)
    order = np.argsort(-probability, kind="stable").tolist()
    outlines: list[NDArray[np.intp]] = []
    # For each voxel and candidate the number of its outline, from 1; 0 for none.
    owned, owner = np.zeros(voxels.shape, dtype=np.min_scalar_type(max_outlines)), np.zeros(len(points), dtype=int)
    for row in order:
        if owner[row] or len(outlines) == max_outlines or probability[row] < min_probability:
            continue
        outline = find_outline(voxels, geometry, indices[row], lungs)
        if len(outline) == 0:
            continue
        # Two outlines belong to the same structure if they share a third of the smaller one.
        sizes = np.minimum([len(one) for one in outlines], len(outline))
        same = np.flatnonzero(3 * np.bincount(owned[tuple(outline.T)], minlength=len(sizes) + 1)[1:] >= sizes)
        if len(same):
            owner[row] = same[0] + 1
            continue
        outlines.append(outline)
        owned[tuple(outline.T)] = owner[row] = len(outlines)
        # Candidates of higher probability without an outline of their own may lie on this one.
        away, _ = KDTree(geometry.index_to_world(outline)).query(points, distance_upper_bound=1.01 * MARGIN_MM)
        owner[(owner == 0) & (away <= MARGIN_MM)] = len(outlines)
    groups: dict[int, list[int]] = {}
    for row in order:
        # A candidate without an outline is a finding of its own.
        groups.setdefault(int(owner[row]) or -1 - row, []).append(row)
    findings = []
    for number, rows in groups.items():
        surface, measures = points[rows[:1]], dict[str, Any]()
        if number > 0:
            outline = outlines[number - 1]
            surface, measures = geometry.index_to_world(outline), _measure(voxels, geometry, outline)
        x, y, z = surface.mean(axis=0).tolist()
        measures |= {"lung": lungs.side(surface.mean(axis=0)), "pleura_distance_mm": lungs.pleura_distance_mm(surface)}
        findings.append(Finding((x, y, z), float(probability[rows[0]]), tuple(rows), **measures))
    return findings


def findings_table(findings: Sequence[Finding], seriesuid: str) -> pd.DataFrame:
    """Make a table of findings. Its first columns are those of a LUNA16 submission.

    Args:
        findings: findings of a scan.
        seriesuid: series UID of the scan.

    Returns:
        One row per finding: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (LPS, mm), ``probability``, ``SIZES``,
        ``attenuation``, ``lung`` and ``candidates``, the number of candidates. Unknown values are NaN or None.
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
    # Fraction of soft tissue in the structure, without its blurred edge.
    core = ndimage.binary_erosion(mask)[mask] & (hu > CAVITY_HU)
    solid = np.mean(hu[core if core.any() else slice(None)] > SOFT_TISSUE_HU)
    attenuation = ["ground-glass", "part-solid", "solid"][np.searchsorted([LITTLE_SOLID, MOSTLY_SOLID], solid)]
    # The longest diameter in an axial slice and the one perpendicular to it, between outer faces of voxels.
    angles, spacing = np.deg2rad(np.arange(0, 180, 5)), np.array(geometry.spacing[1::-1])
    directions = np.stack([np.sin(angles), np.cos(angles)])
    layers = [np.argwhere(layer) * spacing @ directions for layer in mask if layer.any()]
    extents = [np.ptp(layer, axis=0) + np.abs(directions).T @ spacing for layer in layers]
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
