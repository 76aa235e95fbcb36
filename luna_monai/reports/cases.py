"""The candidates that a model got wrong, with all that is known about each."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.reports import layout
from luna_monai.reports.atlas import Circle, ScanViewer, circles, voxel_of
from luna_monai.reports.layout import Case, Picture, Table
from luna_monai.reports.results import nearest_finding, records
from luna_monai.reports.run import Run
from luna_monai.scans.scan import read_header

logger = logging.getLogger(__name__)


def error_cases(candidates: pd.DataFrame, run: Run, title: str) -> list[Case]:
    """Describe and picture rows of the validation predictions, in their order.

    Where a CT is missing or damaged the case says so.
    """
    cases: dict[Any, Case] = {}
    # One CT at a time is in memory, whatever the order of the cases.
    numbers = {position: number for number, position in enumerate(candidates.index, start=1)}
    for seriesuid, of_scan in candidates.groupby("seriesuid", sort=False):
        viewer, note = _open(str(seriesuid), run)
        for position, row in zip(of_scan.index, records(of_scan), strict=True):
            facts, pictures = _facts(row, run, viewer), _pictures(row, run, viewer)
            cases[position] = Case(f"{title} {numbers[position]}", facts, pictures, note)
    return [cases[position] for position in candidates.index]


def mistakes_table(candidates: pd.DataFrame, run: Run) -> Table:
    """List rows of the validation predictions with their numbers."""
    table = candidates.copy()
    points = table[COORDINATES].to_numpy()
    nearest = [_nearest(run.annotations, row) for row in records(table)]
    geometries = {uid: _geometry(uid, run) for uid in table["seriesuid"].unique()}
    found = [geometries[uid] for uid in table["seriesuid"]]
    table["nearest"] = [None if finding is None else finding[0] for finding in nearest]
    table["point"] = [layout.format_point(point, 1) for point in points]
    table["voxel"] = [
        "not known" if geometry is None else ", ".join(map(str, voxel_of(geometry, point)))
        for geometry, point in zip(found, points, strict=True)
    ]
    columns: dict[str, Any] = {
        "class": ("mistake", lambda is_nodule: layout.text("missed nodule" if is_nodule else "false positive")),
        "probability": ("probability", layout.probability),
        "loss": ("loss", lambda loss: layout.number(loss, 3)),
        "diameter_mm": ("diameter, mm", lambda size: layout.number(size, 1) if size > 0 else layout.Cell("none", 0.0)),
        "nearest": ("nearest nodule, mm", _distance_cell),
        "point": ("world x, y, z, mm", layout.text),
        "voxel": ("voxel z, y, x", layout.text),
        "row": ("table row", layout.count),
        "seriesuid": ("series", layout.text),
    }
    return layout.table("The surest mistakes", table, columns)


def _distance_cell(distance: float | None) -> layout.Cell:
    return layout.Cell("none", 1e308) if distance is None or pd.isna(distance) else layout.number(distance, 1)


def _facts(row: dict[str, Any], run: Run, viewer: ScanViewer | None) -> list[tuple[str, str]]:
    point, subset = np.array([row[axis] for axis in COORDINATES]), run.subset(row["seriesuid"])
    known = run.annotations is not None
    facts = {
        "probability": layout.format_probability(row["probability"]),
        "loss": f"{row['loss']:.3f}",
        "diameter": f"{row['diameter_mm']:.1f} mm" if row["diameter_mm"] > 0 else "none",
        "nearest nodule": _distance(_nearest(run.annotations, row)) if known else "not known",
        "nearest excluded": None if run.excluded is None else _distance(_nearest(run.excluded, row)),
        "world x, y, z": f"{layout.format_point(point, 1)} mm",
        "voxel z, y, x": None if viewer is None else ", ".join(map(str, voxel_of(viewer.geometry, point))),
        "table row": str(row["row"]),
        "subset": None if subset is None else str(subset),
        "series": row["seriesuid"],
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _pictures(row: dict[str, Any], run: Run, viewer: ScanViewer | None) -> list[Picture]:
    if viewer is None:
        return []
    point, nearest = np.array([row[axis] for axis in COORDINATES]), _nearest(run.annotations, row)
    marks: list[Circle | None] = [None] * 3
    if nearest is not None:
        marks = circles(point, nearest[1][COORDINATES].to_numpy(dtype=float), float(nearest[1]["diameter_mm"]))
    return [
        Picture(plane.name, layout.data_address(plane.png), None if mark is None else (mark.x, mark.y, mark.radius))
        for plane, mark in zip(viewer.planes(point), marks, strict=True)
    ]


def _nearest(findings: pd.DataFrame | None, row: dict[str, Any]) -> tuple[float, pd.Series] | None:
    if findings is None:
        return None
    of_scan = findings[findings["seriesuid"] == row["seriesuid"]]
    return nearest_finding(np.array([row[axis] for axis in COORDINATES]), of_scan)


def _distance(nearest: tuple[float, pd.Series] | None) -> str:
    if nearest is None:
        return "none in this scan"
    diameter = nearest[1]["diameter_mm"]
    return f"{nearest[0]:.1f} mm away" + (f", {diameter:.1f} mm wide" if diameter > 0 else "")


def _open(seriesuid: str, run: Run) -> tuple[ScanViewer | None, str]:
    if seriesuid not in run.scans:
        return None, "No picture: the CT is not on disk."
    try:
        return ScanViewer.open(run.scans[seriesuid]), ""
    except LunaError as error:
        logger.warning("no picture: %s", error)
        return None, "No picture: the CT cannot be read."


def _geometry(seriesuid: str, run: Run) -> Any:
    try:
        return read_header(run.scans[seriesuid]).geometry if seriesuid in run.scans else None
    except LunaError:
        return None
