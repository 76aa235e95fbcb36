"""Scans as foreign programs write them: a row for each condition, and what must come of it."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK as sitk

from luna_monai.errors import LunaError
from luna_monai.scans import Geometry, list_scans, read_header, read_scan

SHAPE = (8, 10, 12)
VOXELS = np.random.default_rng(3).integers(-1000, 1500, SHAPE, dtype=np.int16)
GEOMETRY = Geometry((12, 10, 8), (0.7, 0.8, 2.5), (-100, -90, -80), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def check(path: Path, expected: str | None, warning: str | None = None) -> None:
    """Read a scan: the voxels and positions are right, or one line matches ``expected``."""
    if expected is not None:
        with pytest.raises(LunaError, match=expected) as caught:
            read_scan(path)
        assert "\n" not in str(caught.value)
        return
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.geometry.affine_ras_zyx, GEOMETRY.affine_ras_zyx, atol=0.01)
    assert len(scan.warnings) == (warning is not None)
    if warning is not None:
        assert warning in scan.warnings[0]


# ------------------------------------------------------------------------------------------------------------- DICOM
def edit(change: Callable[[pydicom.Dataset], None], chosen: slice = slice(None)) -> Callable[[list[Path]], None]:
    """Change slices, those of ``chosen``, in the order of the volume."""

    def change_files(files: list[Path]) -> None:
        for file in files[chosen]:
            dataset = pydicom.dcmread(file)
            change(dataset)
            dataset.save_as(file)

    return change_files


def raw(keyword: str, value: bytes, chosen: slice = slice(None)) -> Callable[[list[Path]], None]:
    """Set a tag to bytes that pydicom itself would not write."""

    def change(dataset: pydicom.Dataset) -> None:
        tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword))
        vr = pydicom.datadict.dictionary_VR(tag)
        value_ = value + b" " * (len(value) % 2)
        dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value_), value_, 0, False, True)

    return edit(change, chosen)


def dicomdir(files: list[Path]) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.DirectoryRecordSequence = []
    for _ in range(2):
        record = pydicom.Dataset()
        record.DirectoryRecordType = "IMAGE"
        record.ReferencedSOPClassUIDInFile = pydicom.uid.CTImageStorage
        dataset.DirectoryRecordSequence.append(record)
    dataset.save_as(files[0].with_name("DICOMDIR"), enforce_file_format=True)


def copies(files: list[Path]) -> None:
    for file in files[2:4]:
        shutil.copy(file, file.with_name(f"copy-{file.name}"))


def linked(files: list[Path]) -> None:
    folder = files[0].parent
    target = folder.with_name("elsewhere")
    folder.rename(target)
    folder.mkdir()
    (folder / "series").symlink_to(target)
    (target / "loop").symlink_to(target)


def scout(files: list[Path]) -> None:
    dataset = pydicom.dcmread(files[0])
    dataset.Rows, dataset.Columns = 4, 5
    dataset.PixelData = bytes(2 * 20)
    dataset.SOPInstanceUID += ".9"
    dataset.save_as(files[0].with_name("0-scout.dcm"))


def two_phases(files: list[Path]) -> None:
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.AcquisitionNumber = 1
        dataset.save_as(file)
        dataset.AcquisitionNumber = 2
        dataset.SOPInstanceUID += ".2"
        dataset.save_as(file.with_name(f"second-{file.name}"))


def padded(value: int, signed: bool) -> Callable[[list[Path]], None]:
    """Mark a pixel of each slice as padding; it was air before."""

    def change(dataset: pydicom.Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<i2" if signed else "<u2").copy()
        pixels[pixels == pixels.min()] = value
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "US", value % 2**16)

    return edit(change)


def set_tag(keyword: str, value: object, chosen: slice = slice(None)) -> Callable[[list[Path]], None]:
    return edit(lambda dataset: setattr(dataset, keyword, value), chosen)


def implicit(files: list[Path]) -> None:
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(file, implicit_vr=True, enforce_file_format=True)


def rle(dataset: pydicom.Dataset) -> None:
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)


def unknown_syntax(dataset: pydicom.Dataset) -> None:
    rle(dataset)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2K


def half(files: list[Path]) -> None:
    for file in files:
        dataset = pydicom.dcmread(file)
        stored = np.frombuffer(dataset.PixelData, "<i2").astype(int) * 2
        dataset.RescaleSlope, dataset.PixelData = "0.5", stored.astype("<i2").tobytes()
        dataset.save_as(file)


DICOM = {
    "as it is": (lambda files: None, {}, None, None),
    "DICOMDIR": (dicomdir, {}, None, None),
    "negative SpacingBetweenSlices": (set_tag("SpacingBetweenSlices", -2.5), {}, None, None),
    "SpacingBetweenSlices of 0": (set_tag("SpacingBetweenSlices", 0), {}, None, None),
    "SliceThickness of 0": (set_tag("SliceThickness", 0), {}, None, None),
    "decimal commas in the spacing": (
        raw("PixelSpacing", b"0,7\\0,7"),
        {},
        r"PixelSpacing must be 2 decimal numbers, found '0,7\\\\0,7'",
        None,
    ),
    "one comma": (raw("PixelSpacing", b"1,5625\\0.7"), {}, "PixelSpacing must be 2 decimal numbers", None),
    "a comma in the slope": (
        raw("RescaleSlope", b"0,5"),
        {},
        "RescaleSlope must be 1 decimal number, found '0,5'",
        None,
    ),
    "a comma in the intercept": (raw("RescaleIntercept", b"-1024,0"), {}, "RescaleIntercept must be 1 dec", None),
    "a slope of no scanner": (raw("RescaleSlope", b"1e30"), {}, "RescaleSlope must be 1 decimal number, found", None),
    "an intercept of no scanner": (raw("RescaleIntercept", b"1e30"), {}, "RescaleIntercept must be 1 dec", None),
    "a comma in the position": (
        raw("ImagePositionPatient", b"-100,5\\-90\\-80"),
        {},
        "ImagePositionPatient must be 3 decimal numbers",
        None,
    ),
    "a comma in the orientation": (
        raw("ImageOrientationPatient", b"1,0\\0\\0\\0\\1\\0"),
        {},
        "ImageOrientationPatient must be 6 decimal numbers",
        None,
    ),
    "no bits stored": (set_tag("BitsStored", 0), {}, "found 1 of 16 bits, 0 of them stored", None),
    "too many bits stored": (set_tag("BitsStored", 17), {}, "found 1 of 16 bits, 17 of them stored", None),
    "a slope of 0": (raw("RescaleSlope", b"0"), {}, r"a damaged DICOM slice \(its RescaleSlope is 0\)", None),
    "a slope of a half": (half, {"RescaleIntercept": 0}, None, None),
    "an impossible spacing": (
        raw("PixelSpacing", b"700\\700"),
        {},
        r"not the geometry of a CT; .* found a size of 12 10 1 voxels, a spacing of 700 700 1 mm",
        None,
    ),
    "unsigned padding above the range": (padded(63536, signed=False), {"PixelRepresentation": 0}, None, None),
    "signed padding": (padded(-2000, signed=True), {}, None, None),
    "duplicate slices": (copies, {}, None, "2 files are copies of other slices and were ignored"),
    "a linked folder": (linked, {}, None, None),
    "a scout that sorts first": (scout, {}, None, "1 of 9 images have another size, spacing or orientation"),
    "two phases": (
        two_phases,
        {},
        r"2 images at each of 8 positions, which differ in AcquisitionNumber \(1, 2\)",
        None,
    ),
    "implicit VR": (implicit, {}, None, None),
    "RLE": (edit(rle), {}, None, None),
    "an unknown transfer syntax": (edit(unknown_syntax), {}, r"its pixels \(High-Throughput JPEG 2000", None),
    "frames": (set_tag("NumberOfFrames", 8), {}, "multi-frame CTs .all slices in one file. cannot be read", None),
    "RGB": (
        set_tag("SamplesPerPixel", 3),
        {},
        "a CT has 1 sample of 8, 16 or 32 bits per pixel, found 3 of 16 bits",
        None,
    ),
    "MONOCHROME1": (lambda files: None, {"PhotometricInterpretation": "MONOCHROME1"}, None, None),
    "MONOCHROME1 in RLE": (edit(rle), {"PhotometricInterpretation": "MONOCHROME1"}, None, None),
    "no rescale tags": (lambda files: None, {"RescaleIntercept": 0, "RescaleSlope": 1}, None, None),
    "notes beside it": (lambda files: (files[0].parent / "notes.txt").write_text("x") and None, {}, None, None),
    "macOS's shadow": (
        lambda files: (files[0].parent / f"._{files[0].name}").write_bytes(b"\0\5x") and None,
        {},
        None,
        None,
    ),
}


@pytest.mark.parametrize("condition", DICOM)
def test_dicom(condition: str, tmp_path: Path, write_dicom: Callable[..., list[Path]]) -> None:
    change, tags, expected, warning = DICOM[condition]
    change(write_dicom(tmp_path / "dicom", VOXELS, GEOMETRY, tags=tags))
    if "padding" not in condition:
        check(tmp_path / "dicom", expected, warning)
        return
    scan = read_scan(tmp_path / "dicom")
    lowest = VOXELS.min(axis=(1, 2), keepdims=True) == VOXELS
    np.testing.assert_array_equal(scan.voxels, np.where(lowest, -1000, VOXELS))


# ------------------------------------------------------------------------------------------------------------- NIfTI
AFFINE = np.diag([-0.7, -0.8, 2.5, 1.0])
AFFINE[:3, 3] = (100, 90, -80)


def image(
    voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE, kind: type = nibabel.Nifti1Image
) -> nibabel.Nifti1Image:
    made = kind(voxels.T, affine)
    made.set_sform(affine, 1)
    made.set_qform(affine, 1)
    return made


def sheared(amount: float) -> nibabel.Nifti1Image:
    made = image()
    shear = AFFINE.copy()
    shear[1, 2] = amount
    made.set_sform(shear, 1)
    return made


def patched(offset: int, value: bytes, made: nibabel.Nifti1Image | None = None) -> bytes:
    content = bytearray((made or image()).to_bytes())
    content[offset : offset + len(value)] = value
    return bytes(content)


def extended() -> nibabel.Nifti1Image:
    made = image()
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    return made


def other_qform() -> nibabel.Nifti1Image:
    made, moved = image(), AFFINE.copy()
    moved[2, 3] -= 5
    made.set_qform(moved, 1)
    return made


def in_metres() -> nibabel.Nifti1Image:
    scale = np.diag([1e-3, 1e-3, 1e-3, 1])
    made = image(affine=scale @ AFFINE)
    made.header.set_xyzt_units("meter")
    return made


FLOATS = VOXELS.astype(np.float32)
NIFTI = {
    "as it is": (lambda: image().to_bytes(), None, None),
    "NIfTI-2": (lambda: image(kind=nibabel.Nifti2Image).to_bytes(), None, None),
    "NIfTI-2 of floats": (lambda: image(FLOATS, kind=nibabel.Nifti2Image).to_bytes(), None, None),
    "big endian": (
        lambda: nibabel.Nifti1Image(VOXELS.T, AFFINE, nibabel.Nifti1Header(endianness=">")).to_bytes(),
        None,
        None,
    ),
    "floats": (lambda: image(FLOATS).to_bytes(), None, None),
    "one volume of floats in 4D": (lambda: image(FLOATS[None]).to_bytes(), None, None),
    "two volumes": (
        lambda: image(np.stack([VOXELS, VOXELS])).to_bytes(),
        r"3 dimensions, found 4 \(12 × 10 × 8 × 2\)",
        None,
    ),
    "a long extension": (lambda: extended().to_bytes(), None, None),
    "a shear of 1e-4": (lambda: sheared(2.5e-4).to_bytes(), None, None),
    "a tilted gantry beside a plain qform": (
        lambda: sheared(0.5).to_bytes(),
        "the axes of the scan must be perp",
        None,
    ),
    "sform and qform disagree": (
        lambda: other_qform().to_bytes(),
        None,
        "sform and qform disagree by up to 5.0 mm",
    ),
    "neither sform nor qform": (lambda: patched(252, bytes(4)), "", "sform and qform have code 0"),
    "slope 1 and intercept NaN": (
        lambda: patched(112, struct.pack("<ff", 1, np.nan), image(FLOATS)),
        None,
        None,
    ),
    "a slope of no scanner": (
        lambda: patched(112, struct.pack("<ff", 1e30, 0)),
        r"no CT has slope 1e\+30",
        None,
    ),
    "slope NaN": (lambda: patched(112, struct.pack("<ff", np.nan, 5)), None, None),
    "a slope of 1 and an intercept": (lambda: patched(112, struct.pack("<ff", 1, -24), image(VOXELS + 24)), None, None),
    "metres": (lambda: in_metres().to_bytes(), None, None),
    "colors": (lambda: patched(70, struct.pack("<hh", 128, 24)), "a scan has one number per voxel, found", None),
    "complex numbers": (lambda: patched(70, struct.pack("<hh", 32, 64)), "one number per voxel|truncated", None),
    "micrometers as mm": (
        lambda: image(affine=AFFINE * 1000).to_bytes(),
        "not the geometry of a CT",
        None,
    ),
}


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("condition", NIFTI)
def test_nifti(condition: str, zipped: bool, name: str, tmp_path: Path) -> None:
    make, expected, warning = NIFTI[condition]
    content = make()
    (tmp_path / name).write_bytes(gzip.compress(content) if zipped else content)
    if expected == "":  # where it is in the patient is not known
        assert warning in read_scan(tmp_path / name).warnings[0]
        return
    check(tmp_path / name, expected, warning)


def test_a_scan_that_unpacks_to_more_than_the_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    side = int((psutil.virtual_memory().total / 2) ** (1 / 3)) + 1000
    made = patched(40, struct.pack("<8h", 3, side, side, side, 1, 1, 1, 1))
    made = made[:76] + struct.pack("<4f", 1, 0.7, 0.7, 0.7) + made[92:]
    content = bytearray(made[:352])
    for row, at in enumerate((280, 296, 312)):
        content[at : at + 16] = struct.pack("<4f", *(0.7 * (row == column) for column in range(3)), 0)
    path = tmp_path / "scan.nii.gz"
    # As long as such a file is at least; nothing of it is decompressed.
    path.write_bytes(gzip.compress(bytes(content)))
    with path.open("ab") as stream:
        stream.truncate(side**3 * 2 // 1000)
    with pytest.raises(LunaError, match=r"scan\.nii\.gz: .* voxels of int16 need .* of memory, .* are available"):
        read_scan(path)


# ------------------------------------------------------------------------------------------------------------- others
def write(path: Path, **changes: str) -> Path:
    one = sitk.GetImageFromArray(VOXELS)
    one.SetSpacing(GEOMETRY.spacing)
    one.SetOrigin(GEOMETRY.origin)
    sitk.WriteImage(one, str(path))
    text = path.read_bytes()
    for old, new in changes.items():
        text = text.replace(old.encode(), new.encode())
    path.write_bytes(text)
    return path


def percent(tmp_path: Path) -> Path:
    path = write(tmp_path / "a.mhd", **{"a.raw": "50%dose.raw"})
    return (tmp_path / "a.raw").rename(tmp_path / "50%dose.raw") and path


OTHERS = {
    "a '%' in the name": (percent, None),
    "a pattern of files": (
        lambda folder: write(folder / "a.mhd", **{"a.raw": "a%03d.raw 1 8 1"}),
        r"a%03d\.raw 1 8 1: no such file",
    ),
    "voxels outside of the folder": (
        lambda folder: write(folder / "a.mhd", **{"a.raw": "/etc/passwd"}),
        r"a\.mhd: the voxel file must be in the folder of the header, found ElementDataFile = /etc/passwd",
    ),
    "ElementSpacing = 1e300": (
        lambda folder: write(folder / "a.mhd", **{"ElementSpacing = 0": "ElementSpacing = 1e300 0", " 2.5": ""}),
        r"not the geometry of a CT; .* a spacing of 1e\+300",
    ),
    "NRRD in micrometers": (
        lambda folder: write(folder / "a.nrrd", **{"(0.69999999999999996,": "(700,"}),
        "not the geometry of a CT",
    ),
    "NRRD with CRLF": (lambda folder: write(folder / "a.nrrd", **{"\n\n": "\r\n\r\n"}), None),
}


@pytest.mark.parametrize("condition", OTHERS)
def test_other_formats(condition: str, tmp_path: Path) -> None:
    make, expected = OTHERS[condition]
    check(make(tmp_path), expected)


def test_files_that_macos_leaves_behind_are_no_scans(tmp_path: Path) -> None:
    write(tmp_path / "scan.nrrd")
    (tmp_path / "._scan.nrrd").write_bytes(b"\0\5\x16\7")
    assert [source.path.name for source in list_scans(tmp_path)] == ["scan.nrrd"]
    with pytest.raises(LunaError, match=r"\._scan\.nrrd: unknown file type"):
        read_header(tmp_path / "._scan.nrrd")
