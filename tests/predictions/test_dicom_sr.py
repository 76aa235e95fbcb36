"""Structured reports, read back by highdicom and pydicom."""

import dataclasses
import sys

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.sr import GraphicTypeValues3D, srread
from pydicom.sr.codedict import codes

from luna_monai.errors import LunaError
from luna_monai.predictions import write_structured_report
from luna_monai.scans import read_header

from .conftest import IDENTIFYING, make_prediction

INDICES = [(12, 20, 34), (3, 40.4, 9.2), (35, 0, 55)]
PROBABILITIES = [0.987654321, 0.25, 1.5e-7]


@pytest.fixture
def prediction(dicom_series, geometry):
    folder, series, files = dicom_series
    warning = "This does not look like a chest CT: no lung was found (ö)."
    return make_prediction(
        geometry, INDICES, PROBABILITIES, source=folder, seriesuid=series, dicom_files=files, warnings=(warning,)
    )


def groups_of(path):
    report = srread(path)
    assert isinstance(report, hd.sr.Comprehensive3DSR)
    return report, report.content.get_planar_roi_measurement_groups(graphic_type=GraphicTypeValues3D.POINT)


def test_positions_and_probabilities_read_back(prediction, tmp_path):
    path = tmp_path / "new" / "report.dcm"
    write_structured_report(prediction, path)
    report, groups = groups_of(path)
    assert len(groups) == 3
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in prediction.dicom_files]
    assert read_header(prediction.source).geometry.index_to_world(np.array([INDICES[0]])) == pytest.approx(
        groups[0].roi.value, abs=1e-3
    )
    for group, (_, row), probability in zip(groups, prediction.candidates.iterrows(), PROBABILITIES, strict=True):
        assert group.roi.frame_of_reference_uid == slices[0].FrameOfReferenceUID
        # Coordinates are single precision in DICOM.
        assert group.roi.value[0] == pytest.approx(row[["coordX", "coordY", "coordZ"]].to_numpy(float), abs=1e-4)
        raw, calibrated = group.get_measurements()
        assert raw.name == calibrated.name == codes.DCM.Probability
        assert raw.unit == codes.UCUM.NoUnits
        assert (raw.value, calibrated.value) == (probability, probability**2)
        assert (raw.method, calibrated.method.value) == (None, "calibrated")
        assert raw.referenced_images[0].referenced_sop_instance_uid == slices[row["index_z"]].SOPInstanceUID
        assert group.finding_type == codes.SCT.Nodule
        assert [site.value for site in group.finding_sites] == [codes.SCT.Lung]
        algorithm = {item.name.meaning: item.value for item in group[0].ContentSequence if item.ValueType == "TEXT"}
        assert algorithm["Algorithm Name"] == "luna-monai, model.pt"
        assert algorithm["Algorithm Version"] == "0.1.0"
        assert "ab" * 32 in algorithm["Algorithm Parameters"]
    assert {uid[0] for uid in report.get_evidence()} == {slices[0].StudyInstanceUID}
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert any(comment.startswith("This does not look like a chest CT") and "(ö)" in comment for comment in comments)
    assert any("not for clinical use" in comment for comment in comments)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_no_identifying_tag(prediction, tmp_path):
    path = tmp_path / "report.dcm"
    write_structured_report(prediction, path)
    content = path.read_bytes()
    for value in IDENTIFYING.values():
        if len(value) > 1:
            assert value.encode() not in content
    report = pydicom.dcmread(path)
    assert all(not report.get(keyword) for keyword in IDENTIFYING)
    assert str(prediction.source) not in content.decode("latin-1")
    assert report.StudyInstanceUID == pydicom.dcmread(prediction.dicom_files[0]).StudyInstanceUID
    assert report.SeriesInstanceUID != prediction.seriesuid


def test_without_calibration_there_is_one_probability(prediction, tmp_path):
    table = prediction.candidates.assign(probability_calibrated=np.nan)
    write_structured_report(dataclasses.replace(prediction, candidates=table), tmp_path / "report.dcm")
    _, groups = groups_of(tmp_path / "report.dcm")
    assert [len(group.get_measurements()) for group in groups] == [1, 1, 1]


def test_the_most_probable_alone_where_there_are_many(prediction, tmp_path):
    write_structured_report(prediction, tmp_path / "report.dcm", max_candidates=2)
    report, groups = groups_of(tmp_path / "report.dcm")
    assert [group.get_measurements()[0].value for group in groups] == PROBABILITIES[:2]
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert "Candidates are proposals of luna-monai; the 2 most probable of 3 are listed." in comments


def test_no_candidates(prediction, tmp_path):
    write_structured_report(
        dataclasses.replace(prediction, candidates=prediction.candidates.iloc[:0]), tmp_path / "report.dcm"
    )
    report, groups = groups_of(tmp_path / "report.dcm")
    assert groups == []
    (group,) = report.content.get_image_measurement_groups()
    (measurement,) = group.get_measurements()
    assert (measurement.name.meaning, measurement.value) == ("Number of candidates", 0)


def test_what_is_not_dicom_is_refused(geometry, tmp_path):
    with pytest.raises(LunaError, match=r"scan\.mhd: .*DICOM slices, and this scan has none"):
        write_structured_report(make_prediction(geometry, INDICES, PROBABILITIES), tmp_path / "report.dcm")
    assert list(tmp_path.iterdir()) == []


def test_slices_without_a_frame_of_reference_are_refused(prediction, tmp_path):
    slice_ = pydicom.dcmread(prediction.dicom_files[5])
    del slice_.FrameOfReferenceUID
    slice_.save_as(prediction.dicom_files[5])
    with pytest.raises(LunaError, match=r"\.dcm: no FrameOfReferenceUID"):
        write_structured_report(prediction, tmp_path / "report.dcm")


def test_slices_of_two_studies_are_refused(prediction, tmp_path):
    slice_ = pydicom.dcmread(prediction.dicom_files[5])
    slice_.StudyInstanceUID = "1.2.3.4"
    slice_.save_as(prediction.dicom_files[5])
    with pytest.raises(LunaError, match="more than one StudyInstanceUID"):
        write_structured_report(prediction, tmp_path / "report.dcm")


def test_without_highdicom(prediction, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(LunaError, match=r"luna-monai\[dicom\]"):
        write_structured_report(prediction, tmp_path / "report.dcm")
