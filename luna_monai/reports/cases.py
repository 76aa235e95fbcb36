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
    """Describe and picture candidates.

    Args:
        candidates: rows of the validation predictions.
        run: the run, for its CTs and findings.
        title: what each is.

    Returns:
        A case for each candidate, in their order. Where a CT is missing or damaged the case says so.
    """
    cases: dict[int, Case] = {}
    # One CT at a time is in memory, whatever the order of the cases.
    for seriesuid, of_scan in candidates.groupby("seriesuid", sort=False):
        viewer, note = _open(str(seriesuid), run)
        findings = _findings(str(seriesuid), run)
        for position, row in zip(of_scan.index, records(of_scan), strict=True):
            cases[position] = _case(row, run, viewer, note, findings, title)
    numbered = [cases[position] for position in candidates.index]
    return [
        Case(f"{case.title} {number}", case.facts, case.pictures, case.note)
        for number, case in enumerate(numbered, start=1)
    ]


def mistakes_table(candidates: pd.DataFrame, run: Run) -> Table:
    """List candidates with their numbers.

    Args:
        candidates: rows of the validation predictions.
        run: the run, for its findings.

    Returns:
        A table with a row for each candidate.
    """
    findings = {uid: _findings(uid, run) for uid in candidates["seriesuid"].unique()}
    voxels = {uid: _geometry(uid, run) for uid in candidates["seriesuid"].unique()}
    rows = []
    for row in records(candidates):
        point = np.array([row[axis] for axis in COORDINATES])
        nearest = nearest_finding(point, findings[row["seriesuid"]][0])
        geometry = voxels[row["seriesuid"]]
        rows.append(
            [
                layout.text("missed nodule" if row["class"] else "false positive"),
                layout.Cell(layout.format_probability(row["probability"]), row["probability"]),
                layout.number(row["loss"], 3),
                layout.number(row["diameter_mm"], 1) if row["diameter_mm"] > 0 else layout.Cell("none", 0.0),
                layout.Cell("none", 1e308) if nearest is None else layout.number(nearest[0], 1),
                layout.text(layout.format_point(point, 1)),
                layout.text("not known" if geometry is None else ", ".join(map(str, voxel_of(geometry, point)))),
                layout.count(row["row"]),
                layout.text(row["seriesuid"]),
            ]
        )
    columns = ["mistake", "probability", "loss", "diameter, mm", "nearest nodule, mm", "world x, y, z, mm"]
    columns += ["voxel z, y, x", "table row", "series"]
    return Table("The surest mistakes", columns, rows)


def _case(
    row: dict[str, Any],
    run: Run,
    viewer: ScanViewer | None,
    note: str,
    findings: tuple[pd.DataFrame | None, pd.DataFrame | None],
    title: str,
) -> Case:
    point = np.array([row[axis] for axis in COORDINATES])
    nearest, nearest_excluded = (nearest_finding(point, table) for table in findings)
    subset = run.subset(row["seriesuid"])
    facts = [
        ("probability", layout.format_probability(row["probability"])),
        ("loss", f"{row['loss']:.3f}"),
        ("diameter", f"{row['diameter_mm']:.1f} mm" if row["diameter_mm"] > 0 else "none"),
        ("nearest nodule", _distance(nearest, known=run.annotations is not None)),
    ]
    if run.excluded is not None:
        facts.append(("nearest excluded", _distance(nearest_excluded, known=True)))
    facts.append(("world x, y, z", f"{layout.format_point(point, 1)} mm"))
    if viewer is not None:
        facts.append(("voxel z, y, x", ", ".join(map(str, voxel_of(viewer.geometry, point)))))
    facts.append(("table row", str(row["row"])))
    if subset is not None:
        facts.append(("subset", str(subset)))
    facts.append(("series", row["seriesuid"]))
    pictures = []
    if viewer is not None:
        marks: list[Circle | None] = [None] * 3
        if nearest is not None:
            _, finding = nearest
            marks = circles(point, finding[COORDINATES].to_numpy(dtype=float), float(finding["diameter_mm"]))
        for plane, mark in zip(viewer.planes(point), marks, strict=True):
            circle = None if mark is None else (mark.x, mark.y, mark.radius)
            pictures.append(Picture(plane.name, layout.data_address(plane.png), circle))
    return Case(title, facts, pictures, note)


def _distance(nearest: tuple[float, pd.Series] | None, *, known: bool) -> str:
    if nearest is None:
        return "none in this scan" if known else "not known"
    distance, finding = nearest
    diameter = finding["diameter_mm"]
    return f"{distance:.1f} mm away" + (f", {diameter:.1f} mm wide" if diameter > 0 else "")


def _open(seriesuid: str, run: Run) -> tuple[ScanViewer | None, str]:
    if seriesuid not in run.scans:
        return None, "No picture: the CT is not on disk."
    try:
        return ScanViewer.open(run.scans[seriesuid]), ""
    except LunaError as error:
        logger.warning("no picture: %s", error)
        return None, "No picture: the CT cannot be read."


def _geometry(seriesuid: str, run: Run) -> Any:
    if seriesuid not in run.scans:
        return None
    try:
        return read_header(run.scans[seriesuid]).geometry
    except LunaError:
        return None


def _findings(seriesuid: str, run: Run) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    annotations, excluded = (
        None if table is None else table[table["seriesuid"] == seriesuid] for table in (run.annotations, run.excluded)
    )
    return annotations, excluded
