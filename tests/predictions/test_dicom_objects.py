"""Structured reports and segmentations, read back by highdicom and pydicom and checked by dciodvfy."""

import dataclasses
import logging
import shutil
import subprocess
import sys
import warnings

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.sr import GraphicTypeValues3D, srread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from luna_monai.errors import LunaError
from luna_monai.predictions import write_dicom
from luna_monai.predictions import write_dicom as write_object
from luna_monai.predictions.outputs import check_outputs
from luna_monai.reports import PredictionPage
from luna_monai.scans import read_header, read_scan
from luna_monai.scans.dicom_slice import PATIENT_TAGS

from .conftest import IDENTIFYING, make_prediction

INDICES = [(12, 20, 34), (3, 40.4, 9.2), (35, 0, 55)]
PROBABILITIES = [0.987654321, 0.25, 1.5e-7]


@pytest.fixture
def header(dicom_series):
    return read_header(dicom_series)


@pytest.fixture
def prediction(header, geometry):
    warning = "This does not look like a chest CT: no lung was found (ö)."
    return make_prediction(
        geometry, INDICES, PROBABILITIES, seriesuid=header.seriesuid, instances=header.instances, warnings=(warning,)
    )


def test_positions_sizes_and_probabilities_read_back(prediction, header, tmp_path):
    path = tmp_path / "new" / "report.dcm"
    write_dicom(path, prediction, header)
    report = srread(path)
    assert isinstance(report, hd.sr.Comprehensive3DSR)
    groups = report.content.get_planar_roi_measurement_groups(graphic_type=GraphicTypeValues3D.POINT)
    assert len(groups) == 3
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in header.files]
    for number, (group, finding) in enumerate(zip(groups, prediction.findings, strict=True), start=1):
        assert group.tracking_identifier == f"Finding {number}"
        assert group.roi.frame_of_reference_uid == slices[0].FrameOfReferenceUID
        # Coordinates are single precision in DICOM.
        assert group.roi.value[0] == pytest.approx(finding.position, abs=1e-4)
        (raw,) = group.get_measurements(name=codes.DCM.Probability)
        assert (raw.value, raw.unit) == (finding.probability, codes.UCUM.NoUnits)
        index = round(INDICES[number - 1][0])
        assert raw.referenced_images[0].referenced_sop_instance_uid == slices[index].SOPInstanceUID
        assert group.finding_type == codes.SCT.Nodule
    sizes = [(one.name.meaning, one.value, one.unit.value) for one in groups[0].get_measurements()[1:]]
    assert sizes == [
        ("Diameter", 4.5, "mm"),
        ("Long axis", 5.5, "mm"),
        ("Short axis", 3.5, "mm"),
        ("Volume", 47.7, "mm3"),
        ("Attenuation Coefficient", 40.0, "[hnsf'U]"),
    ]
    assert [len(group.get_measurements()) for group in groups] == [6, 1, 1], "no size is invented"
    assert groups[0].finding_sites[0].laterality == codes.SCT.Left
    textures = [[one.value for one in group.get_qualitative_evaluations()] for group in groups]
    assert textures == [[Code("RID50151", "RADLEX", "solid pulmonary nodule")], [], []], "only where it is known"
    comments = [item.TextValue for item in report.ContentSequence if item.ValueType == "TEXT"]
    assert any(comment.startswith("This does not look like a chest CT") and "(ö)" in comment for comment in comments)
    assert "The 3 most probable of 3 findings are listed." in comments
    assert any("Not for clinical use" in comment for comment in comments)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


def test_the_segmentation_has_the_outlines_and_the_report_refers_to_it(prediction, header, geometry, tmp_path):
    write_dicom(tmp_path / "a.dcm", prediction, header, segmented=True)
    assert write_dicom(tmp_path / "a.seg.dcm", prediction, header)
    segmentation = hd.seg.segread(tmp_path / "a.seg.dcm")
    assert list(segmentation.segment_numbers) == [1]
    assert segmentation.get_segment_description(1).SegmentLabel == "Finding 1"
    sources = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in header.files]
    masks = segmentation.get_pixels_by_source_instance(
        sources, assert_missing_frames_are_empty=True, ignore_spatial_locations=True
    )[..., 0]
    wanted = np.zeros(geometry.shape, dtype=np.uint8)
    wanted[11:14, 19:23, 33:38] = 1
    np.testing.assert_array_equal(masks, wanted)
    report = srread(tmp_path / "a.dcm")
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    assert group.tracking_uid == segmentation.get_segment_description(1).tracking_uid
    assert segmentation.SOPInstanceUID in [uids[2] for uids in report.get_evidence()]
    assert len(report.content.get_planar_roi_measurement_groups()) == 2


@pytest.mark.parametrize("anonymous", [False, True])
def test_patient_tags(prediction, header, tmp_path, anonymous):
    """The objects have the patient's tags of the CT, so that archives store them together, or empty tags."""
    write_dicom(tmp_path / "a.dcm", prediction, header, anonymous=anonymous)
    write_dicom(tmp_path / "a.seg.dcm", prediction, header, anonymous=anonymous)
    for path in tmp_path.glob("*.dcm"):
        written = pydicom.dcmread(path)
        found = {tag: str(written.get(tag) or "") for tag in IDENTIFYING}
        kept = {} if anonymous else {tag: value for tag, value in IDENTIFYING.items() if tag in PATIENT_TAGS}
        assert {tag: value for tag, value in found.items() if value} == kept
        assert written.StudyInstanceUID == pydicom.dcmread(header.files[0]).StudyInstanceUID
        assert written.SeriesInstanceUID != prediction.seriesuid
        content = path.read_bytes()
        others = [value for tag, value in IDENTIFYING.items() if tag not in kept and len(value) > 1]
        assert not [value for value in others if value.encode() in content]
        assert str(header.path).encode() not in content


@pytest.mark.parametrize("attenuation", ["solid", "part-solid", "ground-glass"])
def test_the_report_has_the_texture(prediction, header, tmp_path, attenuation):
    findings = [dataclasses.replace(one, attenuation=attenuation) for one in prediction.findings]
    write_dicom(tmp_path / "a.dcm", dataclasses.replace(prediction, findings=tuple(findings)), header, segmented=True)
    report = srread(tmp_path / "a.dcm").content
    groups = report.get_planar_roi_measurement_groups() + report.get_volumetric_roi_measurement_groups()
    name = Code("C41144", "NCIt", "Texture")
    values = [group.get_qualitative_evaluations(name=name)[0].value.meaning for group in groups]
    assert values == [f"{attenuation} pulmonary nodule"] * 3


@pytest.mark.parametrize("case", ["segmented", "report alone", "no finding"])
def test_dciodvfy_finds_no_error(prediction, header, tmp_path, case):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    if case == "no finding":
        prediction = dataclasses.replace(prediction, findings=(), shown=0)
    write_dicom(tmp_path / "a.dcm", prediction, header, segmented=case == "segmented")
    if case == "segmented":
        write_dicom(tmp_path / "a.seg.dcm", prediction, header)
    for path in tmp_path.glob("*.dcm"):
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60, check=False)
        assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_no_findings(prediction, header, tmp_path):
    nothing = dataclasses.replace(prediction, shown=0)
    write_dicom(tmp_path / "a.dcm", nothing, header, segmented=True)
    report = srread(tmp_path / "a.dcm")
    assert report.content.get_planar_roi_measurement_groups() == []
    (group,) = report.content.get_image_measurement_groups()
    (measurement,) = group.get_measurements()
    assert (measurement.name.meaning, measurement.value) == ("Number of findings", 0)
    assert not write_dicom(tmp_path / "a.seg.dcm", nothing, header)
    assert [path.name for path in tmp_path.glob("*.dcm")] == ["a.dcm"]


def without(keyword, value=None):
    def change(path):
        slice_ = pydicom.dcmread(path)
        setattr(slice_, keyword, value) if value else delattr(slice_, keyword)
        slice_.save_as(path)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("FrameOfReferenceUID"), r"\.dcm: FrameOfReferenceUID is missing or differs from "),
        (without("StudyInstanceUID", "1.2.3.4"), r"dcm: StudyInstanceUID is missing or differs from "),
    ],
)
def test_series_that_cannot_be_referred_to(prediction, header, tmp_path, change, message):
    change(header.files[5])
    header = read_header(header.path)
    for name in ("a.dcm", "a.seg.dcm"):
        with pytest.raises(LunaError, match=message):
            write_dicom(tmp_path / name, prediction, header)
    assert not list(tmp_path.glob("*.dcm"))


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO 2022 IR 100", "Müller^Änne"),
    ],
)
def test_names_in_any_character_set(prediction, header, tmp_path, charset, name):
    change = pydicom.dcmread(header.files[0])
    change.SpecificCharacterSet, change.PatientName = charset, name
    change.save_as(header.files[0])
    header = read_header(header.path)
    for file in ("a.dcm", "a.seg.dcm"):
        write_dicom(tmp_path / file, prediction, header)
        assert pydicom.dcmread(tmp_path / file).PatientName == name


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientBirthDate", "00000000"), ("StudyDate", "2020-01-01"), ("StudyTime", "noon"), ("PatientSex", "Male")],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_tag_that_is_not_valid(prediction, header, tmp_path, keyword, value):
    without(keyword, value)(header.files[0])
    header = read_header(header.path)
    for file in ("a.dcm", "a.seg.dcm"):
        with pytest.raises(LunaError, match="a tag of the CT is not valid for a DICOM object") as caught:
            write_dicom(tmp_path / file, prediction, header)
        assert "\n" not in str(caught.value)
        write_dicom(tmp_path / f"anonymous-{file}", prediction, header, anonymous=True)
    assert len(list(tmp_path.glob("*.dcm"))) == 2


def test_the_segmentation_has_the_spacing_of_the_ct(prediction, header, tmp_path):
    outlined = [
        dataclasses.replace(finding, outline=np.ones((1, 4, 5), bool), outline_start=(start, 19, 33))
        for finding, start in zip(prediction.findings[:2], (12, 30), strict=True)
    ]
    write_dicom(tmp_path / "a.seg.dcm", dataclasses.replace(prediction, findings=tuple(outlined), shown=2), header)
    volume = hd.seg.segread(tmp_path / "a.seg.dcm").get_volume(combine_segments=True)
    assert sorted(volume.spacing) == pytest.approx([0.7, 0.8, 1.25])
    assert (volume.array > 0).sum() == 2 * 20


def test_a_ct_without_slice_thickness(prediction, header, tmp_path):
    for file in header.files:
        without("SliceThickness")(file)
    write_dicom(tmp_path / "a.seg.dcm", prediction, read_header(header.path))
    (groups,) = pydicom.dcmread(tmp_path / "a.seg.dcm").SharedFunctionalGroupsSequence
    assert groups.PixelMeasuresSequence[0].SliceThickness == pytest.approx(1.25)


def test_other_formats_than_dicom_are_refused(geometry, voxels, tmp_path):
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    with pytest.raises(LunaError, match=r"scan\.mhd: not a DICOM series, so no DICOM output"):
        write_dicom(tmp_path / "report.dcm", make_prediction(geometry, INDICES, PROBABILITIES), read_header(path))


def test_without_highdicom(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(LunaError, match=r"luna-monai\[dicom\]"):
        check_outputs([tmp_path / "report.dcm"], scans=1)


def test_uids_with_leading_zeros_do_not_fill_the_log(tmp_path, write_dicom, voxels, geometry, caplog, recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dicom(tmp_path / "series", voxels, geometry, seriesuid="1.2.826.007")
    caplog.clear()
    scan = read_scan(tmp_path / "series")
    assert scan.seriesuid == "1.2.826.007"
    prediction = make_prediction(
        geometry, INDICES, PROBABILITIES, seriesuid=scan.seriesuid, instances=scan.header.instances
    )
    write_object(tmp_path / "a.dcm", prediction, scan.header, segmented=True)
    write_object(tmp_path / "a.seg.dcm", prediction, scan.header)
    page = PredictionPage(tmp_path / "a.html")
    page.add(0, prediction, voxels, geometry, None)
    assert "1.2.826.007.13" in page.to_html()
    assert caplog.records == []
    assert len(recwarn) == 0
    assert logging.getLogger("pydicom").filters == []
