"""What a model says about one scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from luna_monai.metrics.calibration import Calibration
from luna_monai.scans.geometry import Geometry

#: Columns of ``ScanPrediction.candidates``.
COLUMNS = (
    "seriesuid", "coordX", "coordY", "coordZ", "index_z", "index_y", "index_x", "probability", "probability_calibrated",
)  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """Which model said it.

    Attributes:
        name: of the file of weights, without its folder.
        sha256: of that file, hexadecimal.
        version: of the bundle.
        thresholds: probabilities (raw) above which a nodule is called, by what they were chosen for; empty where none
            are known for these weights.
        calibration: fitted for these weights; None where none is known.
    """

    name: str
    sha256: str
    version: str
    thresholds: dict[str, float]
    calibration: Calibration | None = None


@dataclass(frozen=True, eq=False)
class ScanPrediction:
    """The candidates of one scan with their probabilities.

    Attributes:
        seriesuid: the DICOM series UID, or the name of the file where it has none.
        source: the file or folder that the scan was read from.
        geometry: size, place and orientation of the scan.
        candidates: ``COLUMNS``, most probable first: position in the world (LPS, mm), voxel z, y, x (int), probability
            of being a nodule as the network gives it, and the calibrated one, NaN where no calibration is known for
            these weights.
        model: which model it was.
        proposed: whether the candidates are proposals of our own rather than a given list.
        warnings: what a reader must know, such as that the scan does not look like a chest CT.
        dicom_files: the slices in the order of the volume, where the scan is a DICOM series.
        voxels_sha256: fingerprint of the scan's HU, see :func:`luna_monai.scans.voxels_sha256`.
    """

    seriesuid: str
    source: Path
    geometry: Geometry
    candidates: pd.DataFrame
    model: ModelFacts
    proposed: bool
    warnings: tuple[str, ...] = ()
    dicom_files: tuple[Path, ...] = ()
    voxels_sha256: str = ""
