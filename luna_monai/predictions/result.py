"""The prediction of a model for one scan, and facts about the model."""

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

_OPERATING_POINTS = {"sensitivity": "sensitivity {:g}", "false_positives_per_scan": "{:g} false positive{} per scan"}


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model.

    Attributes:
        name: name of the weights file, without its folder.
        sha256: SHA-256 of the weights file, hexadecimal.
        version: version of the bundle.
        thresholds: thresholds for the probability of the network, by the operating point that they were chosen for,
            such as ``4 false positives per scan``; empty if not known.
        calibration: calibration for these weights; None if not known.
        synthetic: True for the weights of the bundle, which were trained on synthetic scans.
    """

    name: str
    sha256: str
    version: str
    thresholds: dict[str, float]
    calibration: Calibration | None = None
    synthetic: bool = False


def default_weights(bundle_root: str | Path) -> str:
    """Find the weights of the bundle.

    Args:
        bundle_root: folder of the bundle. If it has no weights, those of the installed bundle are used.

    Returns:
        Path of ``models/model.pt``.

    Raises:
        LunaError: if neither bundle has weights.
    """
    for root in (Path(bundle_root), bundle_dir()):
        if (root / "models" / "model.pt").is_file():
            return str(root / "models" / "model.pt")
    raise LunaError(f"{bundle_dir()}: the bundle has no models/model.pt; give a weights file with --weights")


def model_facts(weights: str | Path, metadata: Mapping[str, Any]) -> ModelFacts:
    """Collect the facts about a model.

    Args:
        weights: the weights file.
        metadata: metadata of the bundle. Its ``operating_points`` are used only for the weights that they were measured
            with (``weights_sha256``) and for exports of these weights.

    Returns:
        Name, SHA-256, version of the bundle, thresholds and calibration.

    Raises:
        LunaError: if the file is missing.
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
                name = text.format(point["wanted"], "" if point["wanted"] == 1 else "s")
                thresholds[name] = float(point["threshold"])
    synthetic = bundled.is_file() and sha256_of(bundled) in own
    return ModelFacts(weights.name, sha256, str(metadata.get("version", "")), thresholds, calibration, synthetic)


#: Columns of ``ScanPrediction.candidates``.
COLUMNS = ("seriesuid", *COORDINATES, "probability", "probability_calibrated")


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """The candidates and findings of one scan with their probabilities.

    Attributes:
        seriesuid: series UID, or the file name for formats without a UID.
        geometry: geometry of the scan in the axis order of its file.
        candidates: table with ``COLUMNS``, most probable first: position (LPS, mm), probability of the network, and
            calibrated probability, NaN if the calibration is not known.
        model: facts about the model.
        proposed: True if the candidates are proposals, False if they come from a list.
        findings: findings, most probable first. Their outlines are in ``grid``. ``Finding.candidates`` are rows of
            ``candidates``.
        threshold: lowest probability of findings that are shown.
        shown: number of findings that are shown in pages, tables and DICOM objects, from the first.
        grid: geometry of the scan after it was oriented to LPS and, if smaller than a candidate, padded.
        warnings: warnings about the scan, for example that it does not look like a chest CT.
        instances: Instance Number and SOP Instance UID of each slice of a DICOM series; empty for other formats.
        voxels_sha256: SHA-256 of the HU of the scan.
    """

    seriesuid: str
    geometry: Geometry
    candidates: pd.DataFrame
    model: ModelFacts
    proposed: bool
    findings: tuple[Finding, ...] = ()
    threshold: float = 0.5
    shown: int = 0
    grid: Geometry | None = None
    warnings: tuple[str, ...] = ()
    instances: tuple[tuple[str, str], ...] = ()
    voxels_sha256: str = ""

    @property
    def above_threshold(self) -> int:
        """Number of findings with a probability of at least ``threshold``. Not all of them may be shown."""
        return sum(finding.probability >= self.threshold for finding in self.findings)

    @property
    def axial_slices(self) -> tuple[int, list[tuple[str, str]]]:
        """The axis of the axial slices in the file, 0 for z, and for each slice its number and its SOP Instance UID.

        The number is the Instance Number of a DICOM slice. In other formats it counts from 1, and the UID is empty.
        """
        axis = 2 - int(np.argmax(np.abs(np.asarray(self.geometry.direction)[2])))
        names = [(str(number + 1), "") for number in range(self.geometry.shape[axis])]
        if self.instances and axis == 0:
            names = [(number or name, uid) for (name, _), (number, uid) in zip(names, self.instances, strict=True)]
        return axis, names


def describe_findings(prediction: ScanPrediction) -> list[dict[str, Any]]:
    """Convert the findings of a scan to plain values. All files and pages use this function.

    Args:
        prediction: prediction for a scan.

    Returns:
        For each finding ``position`` (x, y, z in LPS mm), ``voxel`` (z, y, x in the axis order of the file),
        ``probability``, ``probability_calibrated``, ``SIZES``, ``attenuation``, ``lung``, ``candidates`` (the number of
        candidates) and ``candidate_indices`` (their rows). Unknown values are None.
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
    """Find the nearest voxels, (n, 3) z, y, x, of points, (n, 3) x, y, z in LPS mm. Points outside get the border."""
    return np.clip(geometry.world_to_index(points), 0, np.asarray(geometry.shape) - 1)
