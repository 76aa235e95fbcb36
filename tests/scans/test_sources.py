"""Folders of DICOM files as they are found in practice: not readable, incomplete, mixed, or not quite regular."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from luna_monai.errors import LunaError
from luna_monai.scans import read_header, read_scan
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.sources import find_scans, list_scans

SHAPE = (24, 20, 16)


@pytest.fixture
def voxels():
    return np.random.default_rng(3).integers(-1000, 1000, SHAPE, dtype=np.int16)


def geometry_of(slices=SHAPE[0], step=1.25, start=-50.0):
    return Geometry((16, 20, slices), (0.7, 0.7, step), (-5.0, -6.0, start), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def move_slices(files, heights):
    for file, height in zip(files, heights, strict=True):
        tags = pydicom.dcmread(file)
        tags.ImagePositionPatient = [-5.0, -6.0, f"{height:.6f}"]
        tags.save_as(file)


@pytest.mark.parametrize("written", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("declared", [None, ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_pixels_start_where_they_are_and_not_where_the_transfer_syntax_says(
    tmp_path, write_dicom, voxels, written, declared
):
    for file in write_dicom(tmp_path / "dicom", voxels, geometry_of()):
        tags, content = pydicom.dcmread(file), DicomBytesIO()
        content.is_little_endian, content.is_implicit_VR = True, written.is_implicit_VR
        write_dataset(content, tags)
        meta = DicomBytesIO()
        if declared is not None:
            tags.file_meta.TransferSyntaxUID = declared
            meta.write(bytes(128) + b"DICM")
            write_file_meta_info(meta, tags.file_meta)
        file.write_bytes(meta.getvalue() + content.getvalue())
    np.testing.assert_array_equal(read_scan(tmp_path / "dicom").voxels, voxels)


def test_a_folder_that_cannot_be_read_is_not_skipped(tmp_path, write_dicom, voxels, monkeypatch):
    write_dicom(tmp_path / "study" / "a", voxels, geometry_of())
    for folder in ("study/b", "study/lost+found", "luna/subset0", "luna/subset1"):
        (tmp_path / folder).mkdir(parents=True)
    scandir, listdir = os.scandir, os.listdir

    def refuse(function):
        def refusing(path="."):
            if Path(path).name in ("b", "subset1", "lost+found"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path)

        return refusing

    monkeypatch.setattr(os, "scandir", refuse(scandir))
    monkeypatch.setattr(os, "listdir", refuse(listdir))
    assert list_scans(tmp_path / "study" / "a")
    with pytest.raises(LunaError, match=r"study/b: cannot be listed \(Permission denied\)"):
        list_scans(tmp_path / "study")
    with pytest.raises(LunaError, match=r"subset1: cannot be listed \(Permission denied\)"):
        find_scans(tmp_path / "luna")


def test_links_to_missing_files_are_mentioned(tmp_path, write_dicom, voxels):
    files = write_dicom(tmp_path / "dicom", voxels, geometry_of())
    for file in files[:3]:
        file.unlink()
        file.symlink_to(tmp_path / "not" / "there")
    header = read_header(tmp_path / "dicom")
    assert header.geometry.size[2] == SHAPE[0] - 3
    (warning,) = header.warnings
    assert warning == "3 files are links to missing files and were ignored"


def test_slices_of_two_acquisitions_that_alternate(tmp_path, write_dicom, voxels):
    for number, start in (("1", -50.0), ("2", -49.375)):
        files = write_dicom(
            tmp_path / "dicom" / number, voxels, geometry_of(start=start), tags={"AcquisitionNumber": number}
        )
        for file in files:
            tags = pydicom.dcmread(file)
            tags.SOPInstanceUID += f".{number}"
            tags.save_as(file)
    (warning,) = read_header(tmp_path / "dicom").warnings
    assert warning.startswith("slices of several acquisitions alternate (AcquisitionNumber)")


@pytest.mark.parametrize(
    "numbers", [[1] * 12 + [2] * 12, range(24), [1] * 11 + [2, 1] + [2] * 11, [1, 1, 1, 2, 2, 2] * 4]
)
def test_a_scan_in_several_steps_is_one_volume(tmp_path, write_dicom, voxels, numbers):
    files = write_dicom(tmp_path / "dicom", voxels, geometry_of())
    for file, number in zip(files, numbers, strict=True):
        tags = pydicom.dcmread(file)
        tags.AcquisitionNumber = number
        tags.save_as(file)
    scan = read_scan(tmp_path / "dicom")
    np.testing.assert_array_equal(scan.voxels, voxels)
    assert scan.warnings == ()


def test_orientations_that_differ_in_their_last_digit(tmp_path, write_dicom, voxels):
    """The cosine is where rounding to three digits would make two groups of the slices."""
    x, y = 0.1005, np.sqrt(1 - 0.1005**2)
    geometry = Geometry((16, 20, SHAPE[0]), (0.7, 0.7, 1.25), (-5.0, -6.0, -50.0), ((y, -x, 0), (x, y, 0), (0, 0, 1)))
    for number, file in enumerate(write_dicom(tmp_path / "dicom", voxels, geometry)):
        tags = pydicom.dcmread(file)
        cosines = np.array(tags.ImageOrientationPatient, dtype=float)
        tags.ImageOrientationPatient = [f"{value:.10f}" for value in cosines + (number % 2) * 2e-8 - 1e-8]
        tags.save_as(file)
    scan = read_header(tmp_path / "dicom")
    assert (scan.geometry.shape, scan.warnings) == (SHAPE, ())


def test_rounded_positions_are_accepted(tmp_path, write_dicom, voxels):
    files = write_dicom(tmp_path / "dicom", voxels, geometry_of(step=0.625))
    move_slices(files, np.round(-50 + 0.625 * np.arange(SHAPE[0]), 1))
    header = read_header(tmp_path / "dicom")
    assert header.geometry.spacing[2] == pytest.approx(0.625, abs=0.005)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([3.0] * 12 + [3.15] * 11, None),  # each slice is less than 1 mm from its place
        ([3.0] * 12 + [3.29] * 11, "unevenly spaced, and up to 1.7 mm from where even steps would place them"),
        (
            [0.6] * 11 + [1.2] + [0.6] * 11,
            "missing, duplicated or unevenly spaced: .* 1.200 mm apart, most others 0.600",
        ),
        ([0.5, 0.75] * 11 + [0.5], "missing, duplicated or unevenly spaced"),  # two volumes
        ([0.4, 0.6] * 11 + [0.4], "missing, duplicated or unevenly spaced"),
    ],
)
def test_uneven_steps(tmp_path, write_dicom, voxels, steps, message):
    files = write_dicom(tmp_path / "dicom", voxels, geometry_of())
    move_slices(files, -50 + np.cumsum([0, *steps]))
    if message is None:
        assert read_header(tmp_path / "dicom").geometry.shape == SHAPE
    else:
        with pytest.raises(LunaError, match=message):
            read_header(tmp_path / "dicom")


@pytest.mark.parametrize("place", ["study", "study/series/1"])
def test_a_folder_with_slices_and_another_scan(tmp_path, write_dicom, voxels, place):
    write_dicom(tmp_path / place, voxels, geometry_of())
    assert len(list_scans(tmp_path / "study")) == 1
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "study" / "labels.nii.gz"))
    with pytest.raises(LunaError, match=r"study: contains DICOM slices and also labels\.nii\.gz"):
        list_scans(tmp_path / "study")


def test_files_beside_a_scan_are_not_its_business(tmp_path, voxels):
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.nii.gz"))
    (tmp_path / "README").symlink_to(tmp_path / "not" / "there")
    (tmp_path / "damaged.dcm").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(tmp_path / "pipe")
    assert [source.path.name for source in list_scans(tmp_path)] == ["a.nii.gz"]


def test_a_single_slice_is_as_thick_as_it_says(tmp_path, write_dicom, voxels):
    write_dicom(tmp_path / "dicom", voxels[:1], geometry_of(1, step=5))
    assert read_header(tmp_path / "dicom").geometry.spacing == (0.7, 0.7, 5.0)
