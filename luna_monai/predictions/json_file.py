"""Predictions as JSON: everything that is known, for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luna_monai.files import write_json
from luna_monai.predictions.result import ModelFacts, ScanPrediction


def write_json_file(path: str | Path, predictions: Sequence[ScanPrediction]) -> None:
    """Write predictions as JSON.

    ``model`` has name, SHA-256, version, thresholds and calibration; ``scans`` an entry for each scan with its
    geometry (axes in the order x, y, z; LPS mm), the SHA-256 of its HU, warnings and candidates. A candidate's
    ``position`` is LPS mm x, y, z, its ``voxel`` z, y, x from 0 in the order of the file. No path and nothing of a
    patient is in it.

    Args:
        path: the file.
        predictions: one or more scans, of one model.

    Raises:
        LunaError: when the file can't be written.
    """
    content = {
        "format": "luna-monai predictions",
        "model": describe_model(predictions[0].model),
        "scans": [describe_scan(prediction) for prediction in predictions],
    }
    write_json(path, content, indent=1)


def describe_model(model: ModelFacts) -> dict[str, Any]:
    """Give the facts about a model as JSON knows them."""
    return {
        "name": model.name,
        "sha256": model.sha256,
        "version": model.version,
        "thresholds": model.thresholds,
        "calibration": None if model.calibration is None else model.calibration.to_dict(),
    }


def describe_scan(prediction: ScanPrediction) -> dict[str, Any]:
    """Give the prediction of a scan as JSON knows it."""
    geometry = prediction.geometry
    columns = prediction.candidates.to_dict("list")
    candidates = [
        {
            "position": [x, y, z],
            "voxel": [index_z, index_y, index_x],
            "probability": probability,
            "probability_calibrated": None if math.isnan(calibrated) else calibrated,
        }
        for x, y, z, index_z, index_y, index_x, probability, calibrated in zip(
            *(columns[name] for name in ("coordX", "coordY", "coordZ", "index_z", "index_y", "index_x")),
            columns["probability"],
            columns["probability_calibrated"],
            strict=True,
        )
    ]
    return {
        "seriesuid": prediction.seriesuid,
        "size": geometry.size,
        "spacing": geometry.spacing,
        "origin": geometry.origin,
        "direction": geometry.direction,
        "voxels_sha256": prediction.voxels_sha256,
        "proposed": prediction.proposed,
        "warnings": prediction.warnings,
        "candidates": candidates,
    }
