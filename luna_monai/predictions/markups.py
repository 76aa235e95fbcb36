"""Predictions as points for 3D Slicer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luna_monai.files import write_json
from luna_monai.predictions.result import ScanPrediction

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_markups(path: str | Path, predictions: Sequence[ScanPrediction]) -> None:
    """Write the candidates of a scan as a point list of 3D Slicer (``.mrk.json``).

    The label of a point is its probability; those of at most 0.5 are not selected, which Slicer shows in another
    colour.

    Args:
        path: the file.
        predictions: one scan.

    Raises:
        LunaError: when the file can't be written.
    """
    (prediction,) = predictions
    columns = prediction.candidates.to_dict("list")
    points = [
        _point(number, [x, y, z], probability)
        for number, (x, y, z, probability) in enumerate(
            zip(*(columns[name] for name in ("coordX", "coordY", "coordZ", "probability")), strict=True), start=1
        )
    ]
    markups = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "lastUsedControlPointNumber": len(points),
        "description": f"Nodule candidates of {prediction.seriesuid} by {prediction.model.name}",
        "controlPoints": points,
    }
    content = {"@schema": SCHEMA, "markups": [markups]}
    write_json(path, content, indent=1)


def _point(number: int, position: list[float], probability: float) -> dict[str, Any]:
    return {
        "id": str(number),
        "label": f"{probability:.3f}",
        "description": f"probability {probability:.6f}",
        "associatedNodeID": "",
        "position": position,
        "orientation": [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0],
        "selected": probability > 0.5,
        "locked": True,
        "visibility": True,
        "positionStatus": "defined",
    }
