"""Predictions as text: CSV, JSON and the points of 3D Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from luna_monai import files
from luna_monai.data.tables import COORDINATES
from luna_monai.detection.findings import SIZES, findings_table
from luna_monai.predictions.result import ScanPrediction, describe_findings

MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_submission(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write a submission for LUNA16: a row for each finding, or for each candidate where these were given."""
    tables = [findings_table(one.findings, one.seriesuid) if one.proposed else one.candidates for one in predictions]
    files.write_submission(path, pd.concat(tables))


def write_findings(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write the findings that people are shown as a table: position, probability and size."""
    tables = []
    for prediction in predictions:
        table = findings_table(prediction.findings[: prediction.shown], prediction.seriesuid)
        calibrated = [row["probability_calibrated"] for row in describe_findings(prediction)[: prediction.shown]]
        table.insert(5, "probability_calibrated", pd.Series(calibrated, dtype=float))
        table.insert(1, "finding", range(1, len(table) + 1))
        tables.append(table)
    files.write_table(path, pd.concat(tables).round({**SIZES, **dict.fromkeys(COORDINATES, 2)}))


def write_json_file(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write all that is known as JSON, without any path and anything of a patient.

    ``model`` has name, SHA-256, version, thresholds and calibration; ``scans`` an entry for each scan with its
    geometry (axes in the order x, y, z; LPS mm), the SHA-256 of its HU, warnings, candidates and findings. Each has a
    ``position``, LPS mm x, y, z, and a ``voxel``, z, y, x from 0 in the order of the file.
    """
    model = predictions[0].model
    facts = {name: getattr(model, name) for name in ("name", "sha256", "version", "thresholds")}
    facts["calibration"] = None if model.calibration is None else model.calibration.to_dict()
    scans = []
    for prediction in predictions:
        scan = {name: getattr(prediction.geometry, name) for name in ("size", "spacing", "origin", "direction")}
        scan |= {name: getattr(prediction, name) for name in ("seriesuid", "voxels_sha256", "proposed", "warnings")}
        table = prediction.candidates
        candidates = table[["probability", "probability_calibrated"]].to_dict("records")
        places = zip(table[COORDINATES].values, table[["index_z", "index_y", "index_x"]].values, strict=True)
        for candidate, (position, voxel) in zip(candidates, places, strict=True):
            candidate |= {"position": position, "voxel": voxel}
        scan |= {"candidates": candidates, "findings": describe_findings(prediction)}
        scans.append(scan | {"findings_shown": prediction.shown})
    files.write_json(path, {"format": "luna-monai predictions", "model": facts, "scans": scans}, indent=1)


def write_markups(path: Path, prediction: ScanPrediction, **_: Any) -> None:
    """Write the findings of a scan that people are shown as a point list of 3D Slicer (``.mrk.json``)."""
    points = []
    for number, row in enumerate(describe_findings(prediction)[: prediction.shown], start=1):
        size = "" if row["diameter_mm"] is None else f", {row['diameter_mm']:.1f} mm"
        facts = {"id": str(number), "label": f"{number}: {row['probability']:.3f}{size}", "position": row["position"]}
        points.append(facts | {"selected": True, "locked": True, "visibility": True, "positionStatus": "defined"})
    markups = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "description": f"Findings in {prediction.seriesuid} by {prediction.model.name}",
        "controlPoints": points,
    }
    files.write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": [markups]}, indent=1)
