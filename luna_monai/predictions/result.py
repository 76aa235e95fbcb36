"""The prediction of a model for one scan, and the facts about the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.findings import Finding
from luna_monai.errors import LunaError
from luna_monai.files import sha256_of
from luna_monai.metrics.calibration import Calibration
from luna_monai.networks.weights import exported_metadata
from luna_monai.scans.geometry import Geometry
from luna_monai.share import bundle_dir

_OPERATING_POINTS = {"sensitivity": "sensitivity {:g}", "false_positives_per_scan": "{:g} false positives per scan"}


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model.

    Attributes:
        name: of the file of weights, without its folder.
        sha256: of that file, hexadecimal.
        version: of the bundle.
        thresholds: probabilities of the network by what they were chosen for; empty where none are known.
        calibration: fitted for these weights; None where none is known.
        synthetic: whether they are the bundle's weights, which were trained and calibrated on synthetic scans.
    """

    name: str
    sha256: str
    version: str
    thresholds: dict[str, float]
    calibration: Calibration | None = None
    synthetic: bool = False


def default_weights(bundle_root: str | Path) -> str:
    """Find the weights that come with the bundle.

    Args:
        bundle_root: folder of the bundle; the installed bundle is used where it has no weights.

    Returns:
        Path of ``models/model.pt``.

    Raises:
        LunaError: when there are none.
    """
    for root in (Path(bundle_root), bundle_dir()):
        if (root / "models" / "model.pt").is_file():
            return str(root / "models" / "model.pt")
    raise LunaError(f"{bundle_dir()}: the bundle has no models/model.pt; name a file of weights (--weights)")


def model_facts(weights: str | Path, metadata: Mapping[str, Any]) -> ModelFacts:
    """Describe a model by its file of weights.

    Args:
        weights: the file.
        metadata: of the bundle; its ``operating_points`` count only for the weights that they were measured with
            (``weights_sha256``) and for exports of them.

    Returns:
        Name, SHA-256, the bundle's version, thresholds and calibration.

    Raises:
        LunaError: when the file is missing.
    """
    weights, bundled = Path(weights), bundle_dir() / "models" / "model.pt"
    sha256 = sha256_of(weights)
    own = (sha256, exported_metadata(weights).get("weights_sha256", sha256))
    points = metadata.get("operating_points") or {}
    thresholds, calibration = {}, None
    if points.get("weights_sha256") in own:
        calibration = Calibration(**points["calibration"])
        for kind, text in _OPERATING_POINTS.items():
            for point in points["thresholds"][kind]:
                thresholds[text.format(point["wanted"])] = float(point["threshold"])
    synthetic = bundled.is_file() and sha256_of(bundled) in own
    return ModelFacts(weights.name, sha256, str(metadata.get("version", "")), thresholds, calibration, synthetic)


#: Columns of ``ScanPrediction.candidates``.
COLUMNS = ("seriesuid", *COORDINATES, "probability", "probability_calibrated")


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """The candidates and findings of one scan with their probabilities.

    Attributes:
        seriesuid: the DICOM series UID, or the name of the file where it has none.
        source: the file or folder that the scan was read from.
        geometry: of the scan in the order of its file.
        candidates: ``COLUMNS``, most probable first: position (LPS, mm), probability of the network, and the calibrated
            one, NaN where no calibration is known.
        model: which model it was.
        proposed: whether the candidates are proposals rather than a given list.
        findings: most probable first; their outlines are in ``grid``, their candidates rows of ``candidates``.
        shown: how many findings people are shown, the first ones.
        grid: of the scan as the network sees it: turned to LPS, padded where it is smaller than a candidate.
        warnings: about the scan, such as that it does not look like a chest CT.
        dicom_files: the slices in the order of the volume, where the scan is a DICOM series.
        voxels_sha256: fingerprint of the scan's HU.
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


def describe_findings(prediction: ScanPrediction) -> list[dict[str, Any]]:
    """Describe findings by plain values, the one source of all files and pages.

    Args:
        prediction: of a scan.

    Returns:
        For each finding ``position`` (LPS mm), ``voxel`` (z, y, x in the order of the file), ``probability``,
        ``probability_calibrated`` (None where it is not known), ``SIZES``, ``attenuation`` and ``lung`` (None where
        not known), ``candidates``, their number, and ``candidate_indices``, rows of the candidates.
    """
    voxels = nearest_voxels(prediction.geometry, [finding.position for finding in prediction.findings])
    calibrated = prediction.candidates["probability_calibrated"].to_numpy()
    return [
        {
            **{name: value for name, value in vars(finding).items() if name not in ("outline", "outline_start")},
            "voxel": voxel,
            "probability_calibrated": None if np.isnan(value := calibrated[finding.candidates[0]]) else float(value),
            "candidates": len(finding.candidates),
            "candidate_indices": finding.candidates,
        }
        for finding, voxel in zip(prediction.findings, voxels.tolist(), strict=True)
    ]


def nearest_voxels(geometry: Geometry, points: Any) -> np.ndarray:
    """Find the voxels z, y, x of a scan that are nearest to points (n, 3), LPS mm, which may lie at its faces."""
    return np.clip(geometry.world_to_index(points), 0, np.asarray(geometry.shape) - 1)
