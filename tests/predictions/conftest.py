"""A small CT as a DICOM series with a patient in its tags, and what a model says about it."""

import numpy as np
import pandas as pd
import pytest

from luna_monai.detection.findings import Finding
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction
from luna_monai.scans.geometry import Geometry

#: Values of tags that tell who it is; none of them may be found in anything that is written.
IDENTIFYING = {
    "PatientName": "Quux^Erika",
    "PatientID": "MRN-77123",
    "PatientBirthDate": "19480229",
    "PatientSex": "F",
    "PatientAge": "071Y",
    "PatientAddress": "12 Nowhere Lane",
    "OtherPatientIDs": "ALT-5566",
    "AccessionNumber": "ACC-4711",
    "StudyID": "ST-0815",
    "StudyDate": "20190307",
    "StudyTime": "101112",
    "StudyDescription": "Thorax Verlaufskontrolle",
    "ReferringPhysicianName": "Referrer^Doctor",
    "InstitutionName": "General Hospital",
    "OperatorsName": "Operator^One",
    "ProtocolName": "Quux protocol",
}


def make_prediction(geometry, indices, probabilities, **changes):
    """A prediction with a candidate and a finding at each voxel z, y, x, most probable first; the first is outlined."""
    indices = np.reshape(indices, (-1, 3)).astype(float)
    points = geometry.index_to_world(indices)
    table = pd.DataFrame(points, columns=["coordX", "coordY", "coordZ"])
    table.insert(0, "seriesuid", "1.2.3")
    table["probability"] = probabilities
    table["probability_calibrated"] = np.asarray(probabilities, dtype=float) ** 2
    findings = []
    for number, (point, index, probability) in enumerate(zip(points.tolist(), indices, probabilities, strict=True)):
        sizes = {}
        if number == 0:
            sizes = {"diameter_mm": 4.5, "long_axis_mm": 5.5, "short_axis_mm": 3.5, "volume_mm3": 47.7, "mean_hu": 40.0}
            sizes |= {
                "attenuation": "solid",
                "lung": "left",
                "pleura_distance_mm": 2.5,
                "outline": np.ones((3, 4, 5), bool),
            }
            sizes |= {"outline_start": tuple((index - 1).round().astype(int).tolist())}
        findings.append(Finding(tuple(point), probability, (number,), **sizes))
    facts = {
        "seriesuid": "1.2.3",
        "geometry": geometry,
        "grid": geometry,
        "candidates": table[list(COLUMNS)],
        "findings": tuple(findings),
        "shown": len(findings),
        "model": ModelFacts("model.pt", "ab" * 32, "0.1.0", {"4 false positives per scan": 0.25}),
        "proposed": True,
    }
    return ScanPrediction(**(facts | changes))


@pytest.fixture
def geometry():
    """An oblique grid with different spacing along each axis."""
    cos, sin = np.cos(0.3), np.sin(0.3)
    return Geometry(
        (56, 52, 36), (0.7, 0.8, 1.25), (-20.0, 35.5, -100.25), ((cos, -sin, 0.0), (sin, cos, 0.0), (0.0, 0.0, 1.0))
    )


@pytest.fixture
def voxels(geometry):
    """Lung with a ball of tissue 6 voxels wide at (12, 20, 34)."""
    random = np.random.default_rng(0)
    values = random.normal(-860, 20, geometry.shape)
    z, y, x = np.indices(geometry.shape)
    values[(z - 12) ** 2 + (y - 20) ** 2 + (x - 34) ** 2 <= 9] = 40
    return np.round(values).astype(np.int16)


@pytest.fixture
def dicom_series(tmp_path, write_dicom, voxels, geometry):
    """The folder of the series."""
    write_dicom(tmp_path / "series", voxels, geometry, seriesuid="1.2.826.7", tags=IDENTIFYING)
    return tmp_path / "series"
