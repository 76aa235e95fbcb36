"""A small CT as a DICOM series with a patient in its tags, and what a model says about it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from luna_monai.data.geometry import Geometry
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction

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


def write_series(folder, voxels, geometry):
    """Write a volume in HU as CT slices, last slice first in the order of names."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    direction = np.asarray(geometry.direction)
    files = []
    for number, plane in enumerate(voxels):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality = "CT"
        for keyword, value in IDENTIFYING.items():
            setattr(slice_, keyword, value)
        slice_.ImagePositionPatient = geometry.index_to_world(np.array([[number, 0, 0]]))[0].tolist()
        slice_.ImageOrientationPatient = direction[:, :2].T.ravel().tolist()
        slice_.PixelSpacing = [geometry.spacing[1], geometry.spacing[0]]
        slice_.SliceThickness = geometry.spacing[2]
        slice_.Rows, slice_.Columns = plane.shape
        slice_.SamplesPerPixel = 1
        slice_.PhotometricInterpretation = "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.InstanceNumber = number + 1
        slice_.PixelData = (plane.astype(np.int16) + 1024).astype("<i2").tobytes()
        path = folder / f"{len(voxels) - number:03d}.dcm"
        slice_.save_as(path, enforce_file_format=True)
        files.append(path)
    return series, tuple(files)


def make_prediction(geometry, indices, probabilities, **changes):
    """A prediction with candidates at voxels z, y, x, given most probable first."""
    indices = np.reshape(indices, (-1, 3)).astype(float)
    table = pd.DataFrame(geometry.index_to_world(indices), columns=["coordX", "coordY", "coordZ"])
    table.insert(0, "seriesuid", "1.2.3")
    table[["index_z", "index_y", "index_x"]] = np.round(indices).astype(int)
    table["probability"] = probabilities
    table["probability_calibrated"] = np.asarray(probabilities, dtype=float) ** 2
    facts = {
        "seriesuid": "1.2.3",
        "source": Path("/home/erika.quux/scans/scan.mhd"),
        "geometry": geometry,
        "candidates": table[list(COLUMNS)],
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
def dicom_series(tmp_path, voxels, geometry):
    """The folder, series UID and slices in the order of the volume."""
    folder = tmp_path / "series"
    series, files = write_series(folder, voxels, geometry)
    return folder, series, files
