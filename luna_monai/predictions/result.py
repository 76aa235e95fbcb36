"""The prediction of a model for one scan."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.findings import SIZES, Finding
from luna_monai.predictions.model import ModelFacts
from luna_monai.scans.geometry import Geometry

#: Columns of ``ScanPrediction.candidates``.
COLUMNS = ("seriesuid", *COORDINATES, "index_z", "index_y", "index_x", "probability", "probability_calibrated")


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """The candidates and findings of one scan with their probabilities.

    Attributes:
        seriesuid: the DICOM series UID, or the name of the file where it has none.
        source: the file or folder that the scan was read from.
        geometry: of the scan in the order of its file.
        candidates: ``COLUMNS``, most probable first: position (LPS, mm), voxel z, y, x in the order of the file,
            probability of the network, and the calibrated one, NaN where no calibration is known.
        model: which model it was.
        proposed: whether the candidates are proposals rather than a given list.
        findings: most probable first; their outlines are in ``grid``, their candidates rows of ``candidates``.
        shown: how many findings people are shown, the first ones.
        grid: of the scan as the network sees it: turned to LPS, padded where it is smaller than a candidate.
        warnings: about the scan, such as that it does not look like a chest CT.
        dicom_files: the slices in the order of the volume, where the scan is a DICOM series.
        voxels_sha256: fingerprint of the scan's HU.
        run: makes the UIDs of DICOM objects, which refer to each other.
    """

    seriesuid: str
    source: Path
    geometry: Geometry
    candidates: pd.DataFrame
    model: ModelFacts
    proposed: bool
    findings: tuple[Finding, ...] = ()
    shown: int = 0
    grid: Geometry | None = None
    warnings: tuple[str, ...] = ()
    dicom_files: tuple[Path, ...] = ()
    voxels_sha256: str = ""
    run: uuid.UUID = field(default_factory=uuid.uuid4)


def describe_findings(prediction: ScanPrediction) -> list[dict[str, Any]]:
    """Describe findings by plain values, the one source of all files and pages.

    Args:
        prediction: of a scan.

    Returns:
        For each finding ``position`` (LPS mm), ``voxel`` (z, y, x in the order of the file), ``probability``,
        ``probability_calibrated`` (None where it is not known), ``SIZES``, ``attenuation`` and ``lung`` (None where
        not known), ``candidates``, their number, and ``candidate_indices``, rows of the candidates.
    """
    rows = []
    size = np.asarray(prediction.geometry.shape)
    for finding in prediction.findings:
        calibrated = float(prediction.candidates["probability_calibrated"].iloc[finding.candidates[0]])
        index = prediction.geometry.world_to_index(np.array([finding.position]))[0]
        rows.append(
            {
                "position": list(finding.position),
                "voxel": np.clip(index, 0, size - 1).tolist(),
                "probability": finding.probability,
                "probability_calibrated": None if np.isnan(calibrated) else calibrated,
                **{name: getattr(finding, name) for name in (*SIZES, "attenuation", "lung")},
                "candidates": len(finding.candidates),
                "candidate_indices": list(finding.candidates),
            }
        )
    return rows
