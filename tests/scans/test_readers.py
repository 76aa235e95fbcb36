"""Every format gives the same voxels at the same places, and every kind of damage one line that names the file."""

import gzip
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from luna_monai.errors import LunaError
from luna_monai.scans import ScanSource, read_header, read_scan
from luna_monai.scans.metaimage import read_fields
from luna_monai.scans.voxels import inflate_voxels
from luna_monai.transforms import LoadScan

IDENTITY = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)
OBLIQUE = tuple(np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0].ravel())
NAMES = ["a.mhd", "zipped.mhd", "b.mha", "zipped.mha", "c.nii", "c.nii.gz", "d.nrrd", "zipped.nrrd", "dicom"]
SIZE = (20, 16, 12)


def make_image(direction: tuple[float, ...] = IDENTITY) -> sitk.Image:
    voxels = np.random.default_rng(0).integers(-1024, 3071, SIZE[::-1], dtype=np.int16)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-166.5, 171.25, -340.75))
    image.SetDirection(direction)
    return image


def write_dicom(image: sitk.Image, folder: Path, uid: str = "1.2.3") -> None:
    folder.mkdir(exist_ok=True)
    orientation = "\\".join(f"{value:.12g}" for value in np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel())
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    depth = image.GetSize()[2]
    for z in range(depth):
        layer = image[:, :, z]
        position = image.TransformIndexToPhysicalPoint((0, 0, z))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{z + 1}",
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(f"{value:.12g}" for value in position),
            "0020|0037": orientation,
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            layer.SetMetaData(key, value)
        # The order of the names is not that of the slices.
        writer.SetFileName(str(folder / f"{uid}-{(z * 7) % depth:03d}.dcm"))
        writer.Execute(layer)


def write(image: sitk.Image, path: Path) -> Path:
    if path.suffix == "":
        write_dicom(image, path)
    else:
        sitk.WriteImage(image, str(path), useCompression=path.name.startswith("zipped") or path.suffix == ".gz")
    return path


@pytest.mark.parametrize("direction", [IDENTITY, FLIPPED, OBLIQUE], ids=["identity", "flipped", "oblique"])
@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_scan(
    name: str, direction: tuple[float, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A matrix with determinant 1, which DICOM and NIfTI can hold.
    direction = tuple(np.ravel(np.reshape(direction, (3, 3)) * np.linalg.det(np.reshape(direction, (3, 3)))))
    image = make_image(direction)
    path = write(image, tmp_path / name)
    scan = read_scan(path, None)
    geometry = scan.geometry
    assert scan.voxels.dtype == np.int16
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(image))
    assert read_header(path).geometry == geometry
    assert scan.warnings == ()
    assert scan.header.is_mapped == (name in ("a.mhd", "c.nii")) or name in (
        "b.mha",
        "d.nrrd",
    )  # as their headers are long
    corners = [[0, 0, 0], [11, 15, 19], [11, 0, 0], [0, 15, 0]]
    world = [image.TransformIndexToPhysicalPoint(corner[::-1]) for corner in corners]
    np.testing.assert_allclose(geometry.index_to_world(np.array(corners)), world, atol=1e-4)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("orientation", [None, "LPS"])
@pytest.mark.parametrize("name", ["a.mhd", "c.nii.gz", "dicom"])
def test_load_scan_gives_a_right_metatensor(name: str, orientation: str | None, tmp_path: Path) -> None:
    image = make_image(OBLIQUE)
    path = write(image, tmp_path / name)
    tensor = LoadScan(orientation)(str(path))
    scan = read_scan(path, orientation)
    assert tensor.dtype == torch.int16
    np.testing.assert_array_equal(tensor[0].numpy(), scan.voxels)
    ras = (tensor.affine.numpy() @ [3, 5, 7, 1])[:3]
    np.testing.assert_allclose(ras * [-1, -1, 1], scan.geometry.index_to_world(np.array([[3, 5, 7]]))[0], atol=1e-3)
    assert tensor.meta["geometry"] == scan.geometry


@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE, *np.eye(3)[[[1, 2, 0], [2, 1, 0]]].tolist()], ids=str)
def test_turning_moves_no_voxel(direction: tuple[float, ...], tmp_path: Path) -> None:
    image = make_image(tuple(np.ravel(direction)))
    path = write(image, tmp_path / "a.mhd")
    scan = read_scan(path)
    assert scan.header.geometry == read_scan(path, None).geometry
    turned = np.asarray(scan.geometry.direction)
    assert (np.abs(turned).argmax(axis=0) == [0, 1, 2]).all()
    assert (np.diag(turned) > 0).all()
    index = np.argwhere(scan.voxels > -2000)[::17]
    there = scan.header.geometry.world_to_index(scan.geometry.index_to_world(index))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image)[tuple(there.T)], scan.voxels[tuple(index.T)])
    other = sitk.DICOMOrient(image, "LPS")
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(other))
    np.testing.assert_allclose(scan.geometry.origin, other.GetOrigin(), atol=1e-9)


@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE], ids=["flipped", "oblique"])
def test_affine_of_nifti_is_nibabels(direction: tuple[float, ...], tmp_path: Path) -> None:
    path = write(make_image(direction), tmp_path / "scan.nii.gz")
    other = nibabel.load(path)
    scan = read_scan(path, None)
    np.testing.assert_array_equal(scan.voxels, np.asarray(other.dataobj).T)
    np.testing.assert_allclose(scan.geometry.affine_ras_zyx[:, [2, 1, 0, 3]], other.affine, atol=1e-4)


def test_uncompressed_voxels_are_mapped_and_the_file_is_safe(tmp_path: Path) -> None:
    path = write(make_image(), tmp_path / "scan.mhd")
    raw = tmp_path / "scan.raw"
    before = raw.read_bytes()
    raw.chmod(0o444)
    scan = read_scan(path)
    assert scan.header.is_mapped
    tensor = torch.from_numpy(scan.voxels)
    tensor += 1
    assert raw.read_bytes() == before


@pytest.mark.parametrize(
    ("pixel", "dtype"),
    [
        (sitk.sitkUInt8, "i2"),
        (sitk.sitkInt8, "i2"),
        (sitk.sitkUInt16, "f4"),
        (sitk.sitkUInt32, "f4"),
        (sitk.sitkInt32, "i2"),
        (sitk.sitkFloat32, "f4"),
        (sitk.sitkFloat64, "f4"),
    ],
)
@pytest.mark.parametrize("name", ["a.mhd", "zipped.mhd", "b.mha", "c.nii", "d.nrrd"])
def test_every_type_becomes_one_of_two(name: str, pixel: int, dtype: str, tmp_path: Path) -> None:
    largest = {sitk.sitkUInt8: 255, sitk.sitkInt8: 127, sitk.sitkUInt16: 40_000, sitk.sitkUInt32: 4_000_000_000}
    values = np.linspace(0, largest.get(pixel, 3000), np.prod(SIZE)).reshape(SIZE[::-1])
    image = sitk.Cast(sitk.GetImageFromArray(values), pixel)
    voxels = read_scan(write(image, tmp_path / name)).voxels
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(image).astype(dtype))


@pytest.mark.parametrize("name", ["a.mhd", "zipped.mhd", "c.nii.gz", "d.nrrd"])
def test_what_is_not_a_finite_number_is_air(name: str, tmp_path: Path) -> None:
    image = sitk.Cast(make_image(), sitk.sitkFloat32)
    image[3, 4, 5], image[0, 0, 0], image[1, 1, 1] = float("nan"), float("inf"), -float("inf")
    path = write(image, tmp_path / name)
    before = path.read_bytes()
    scan = read_scan(path)
    assert [scan.voxels[5, 4, 3], scan.voxels[0, 0, 0], scan.voxels[1, 1, 1]] == [-1000] * 3
    assert scan.warnings == ("3 voxels are not finite; they are set to air (-1000 HU)",)
    assert path.read_bytes() == before


def test_big_endian_header_size_and_old_names(tmp_path: Path) -> None:
    path = write(make_image(FLIPPED), tmp_path / "scan.mhd")
    geometry = read_header(path).geometry
    expected = read_scan(path, None).voxels.copy()
    (tmp_path / "scan.raw").write_bytes(b"odd" + expected.astype(">i2").tobytes())
    text = path.read_text().replace("MSB = False", "MSB = True").replace("Offset", "Origin")
    text = text.replace("TransformMatrix", "Orientation").replace("ElementDataFile", "HeaderSize = 3\nElementDataFile")
    path.write_text(text)
    scan = read_scan(path, None)
    voxels = scan.voxels
    assert scan.geometry == geometry
    assert voxels.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(voxels, expected)
    assert torch.from_numpy(voxels).sum() == expected.sum(dtype=np.int64)
    path.write_text(text.replace("HeaderSize = 3", "HeaderSize = -1"))
    np.testing.assert_array_equal(read_scan(path, None).voxels, expected)


def test_files_of_each_format(tmp_path: Path) -> None:
    image = make_image()
    assert read_header(write(image, tmp_path / "a.mhd")).files == (
        tmp_path / "a.mhd",
        tmp_path / "a.raw",
    )
    assert read_header(write(image, tmp_path / "zipped.mhd")).files == (
        tmp_path / "zipped.mhd",
        tmp_path / "zipped.zraw",
    )
    assert read_header(write(image, tmp_path / "c.nii.gz")).files == (tmp_path / "c.nii.gz",)
    slices = read_header(write(image, tmp_path / "dicom")).files
    assert sorted(slices) == sorted((tmp_path / "dicom").iterdir())
    heights = [float(sitk.ReadImage(str(file)).GetOrigin()[2]) for file in slices]
    assert heights == sorted(heights)


def test_one_series_of_several_is_chosen_by_uid(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    image = make_image()
    write_dicom(image, folder, "1.2.3")
    write_dicom(image + 1, folder, "1.2.4")
    (folder / "notes.txt").write_text("not DICOM")
    with pytest.raises(
        LunaError, match=r"dicom: 2 CT series; choose one by .*: 1\.2\.3 \(12 slices\), 1\.2\.4 \(12 slices\)"
    ):
        read_scan(folder)
    scan = read_scan(ScanSource(folder, "1.2.4"))
    assert scan.seriesuid == "1.2.4"
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayFromImage(image + 1))
    with pytest.raises(LunaError, match=r"series 9\.9 was not found; CT series: 1\.2\.3 \(12 slices\), 1\.2\.4"):
        read_header(ScanSource(folder, "9.9"))


# ----------------------------------------------------------------------------------------------------- damaged input
def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_bytes()
        assert old.encode() in text
        path.write_bytes(text.replace(old.encode(), new.encode(), 1))

    return change


def cut(suffix: str, keep: float = 0.5) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path = path.with_suffix(suffix) if suffix else path
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return change


def flip(suffix: str, where: float = 0.6) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path = path.with_suffix(suffix) if suffix else path
        content = bytearray(path.read_bytes())
        content[int(len(content) * where)] ^= 0xFF
        path.write_bytes(content)

    return change


def byte(position: int, value: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] = value
        path.write_bytes(data)

    return change


def remove(suffix: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(suffix).unlink()


def content(data: bytes, suffix: str = "") -> Callable[[Path], None]:
    return lambda path: (path.with_suffix(suffix) if suffix else path).write_bytes(data) and None


def append(data: bytes, suffix: str) -> Callable[[Path], None]:
    return lambda path: path.with_suffix(suffix).write_bytes(path.with_suffix(suffix).read_bytes() + data) and None


def flip_stored_gzip(path: Path) -> None:
    """Flip a bit where only gzip's checksum can notice."""
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_stored_nrrd(path: Path) -> None:
    head, _, tail = path.read_bytes().partition(b"\n\n")
    data = bytearray(gzip.compress(gzip.decompress(tail), compresslevel=0))
    # Where ITK itself passes over it.
    data[-9] ^= 1
    path.write_bytes(head + b"\n\n" + data)


def shorter_zraw(path: Path) -> None:
    data = zlib.compress(zlib.decompress(path.with_suffix(".zraw").read_bytes())[:-1000])
    path.with_suffix(".zraw").write_bytes(data)
    text = path.read_text().splitlines()
    path.write_text(
        "\n".join(f"CompressedDataSize = {len(data)}" if "CompressedDataSize" in line else line for line in text)
    )


def drop_slice(path: Path) -> None:
    read_header(path).files[4].unlink()


def double_slice(path: Path) -> None:
    file = read_header(path).files[4]
    (path / "again.dcm").write_bytes(file.read_bytes()[:-1] + b"\x13")


def cut_slice(bytes_less: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        # The last one: nothing between two others would be missing without it.
        file = read_header(path).files[-1]
        file.write_bytes(file.read_bytes()[:-bytes_less])

    return change


def shear_slices(path: Path) -> None:
    for file in path.iterdir():
        image = sitk.ReadImage(str(file))
        x, y, z = image.GetOrigin()
        layer = image[:, :, 0]
        for key in ("0008|0060", "0008|0018", "0020|000d", "0020|000e", "0020|0013", "0020|0037"):
            layer.SetMetaData(key, image.GetMetaData(key))
        layer.SetMetaData("0020|0032", f"{x}\\{y + 0.2 * z}\\{z}")
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(layer)


def no_slices(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    (path / "readme.txt").write_text("the scans are elsewhere")


def other_dimensions(path: Path) -> None:
    image = make_image()
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))


def colours(path: Path) -> None:
    channel = sitk.Cast(make_image() * 0, sitk.sitkUInt8)
    sitk.WriteImage(sitk.Compose(channel, channel, channel), str(path))


DAMAGE = {
    "truncated raw": ("a.mhd", cut(".raw"), r"a\.raw: found 3840 bytes of voxels, expected 7680.*truncated"),
    "missing raw": ("a.mhd", remove(".raw"), r"a\.raw: no such file, but a\.mhd refers to it"),
    "empty raw": ("a.mhd", content(b"", ".raw"), r"a\.raw: found 0 bytes .* expected 7680"),
    "raw too long": (
        "a.mhd",
        append(b"xx", ".raw"),
        r"a\.raw: found 7682 bytes .* or the header belongs to another scan",
    ),
    "header says more": ("a.mhd", edit("DimSize = 20", "DimSize = 40"), r"a\.raw: found 7680 .* expected 15360"),
    "header says less": ("a.mhd", edit("DimSize = 20", "DimSize = 10"), r"a\.raw: found 7680 .* expected 3840"),
    "header says another type": ("a.mhd", edit("MET_SHORT", "MET_INT"), r"a\.raw: found 7680 .* expected 15360"),
    "truncated zraw": ("zipped.mhd", cut(".zraw"), r"zipped\.zraw: found \d+ bytes .* truncated"),
    "corrupt zraw": ("zipped.mhd", flip(".zraw"), r"zipped\.zraw: damaged or truncated compressed data"),
    "zraw is no zlib": ("zipped.mhd", content(b"x" * 9999, ".zraw"), r"zipped\.zraw: found 9999 bytes"),
    "missing zraw": ("zipped.mhd", remove(".zraw"), r"zipped\.zraw: no such file"),
    "zraw holds less": ("zipped.mhd", shorter_zraw, r"zipped\.zraw: contains 6680 bytes when .* expected 7680"),
    "zraw holds more": (
        "zipped.mhd",
        edit("DimSize = 20", "DimSize = 10"),
        r"zipped\.zraw: contains 7680 bytes when decompressed, expected 3840",
    ),
    "zraw is empty": ("zipped.mhd", content(b"", ".zraw"), r"zipped\.zraw: found 0 bytes of voxels"),
    "huge zraw": (
        "zipped.mhd",
        edit("DimSize = 20", "DimSize = 9e20"),
        r"zipped\.mhd: DimSize must be 3 integers, found '9e20 16 12'",
    ),
    "raw is a folder": ("a.mhd", edit("a.raw", ".."), r"a\.mhd: the voxel file must be in the folder of the header"),
    "DimSize is infinite": ("a.mhd", edit("DimSize = 20", "DimSize = inf"), r"a\.mhd: DimSize must be 3 integers"),
    "empty header": ("a.mhd", content(b""), r"a\.mhd: not a MetaImage header, or it is damaged"),
    "garbage header": ("a.mhd", content(b"\x00\x01garbage\n" * 9), r"a\.mhd: not a MetaImage header"),
    "truncated header": ("a.mhd", cut("", 0.4), r"a\.mhd: not a MetaImage header"),
    "no DimSize": ("a.mhd", edit("DimSize", "Dim"), r"a\.mhd: DimSize must be 3 integers, found ''"),
    "DimSize is text": (
        "a.mhd",
        edit("DimSize = 20", "DimSize = x"),
        r"a\.mhd: DimSize must be 3 integers, found 'x",
    ),
    "DimSize is a fraction": (
        "a.mhd",
        edit("DimSize = 20", "DimSize = 2.5"),
        r"a\.mhd: DimSize must be 3 integers",
    ),
    "DimSize is negative": (
        "a.mhd",
        edit("DimSize = 20", "DimSize = -20"),
        r"a\.mhd: not the geometry of a CT; .* found a size of -20 16 12",
    ),
    "spacing is zero": ("a.mhd", edit("Spacing = 0.6", "Spacing = 0 0.6"), r"a\.mhd: ElementSpacing must be 3 numbers"),
    "two dimensions": ("a.mhd", edit("NDims = 3", "NDims = 2"), r"a\.mhd: NDims must be 3, found '2'"),
    "colour MetaImage": ("a.mha", colours, r"a\.mha: ElementNumberOfChannels must be 1, found '3'"),
    "unknown type": (
        "a.mhd",
        edit("MET_SHORT", "MET_STRING"),
        r"a\.mhd: ElementType must be MET_CHAR or .*'MET_STRING'",
    ),
    "text voxels": ("a.mhd", edit("BinaryData = True", "BinaryData = False"), r"a\.mhd: BinaryData must be True"),
    "list of files": ("a.mhd", edit("a.raw", "LIST"), r"LIST: no such file, but a\.mhd refers to it"),
    "skewed axes": ("a.mhd", edit("Matrix = 1 0", "Matrix = 1 0.5"), r"a\.mhd: the axes of the scan must be"),
    "truncated mha": ("a.mha", cut(""), r"a\.mha: found \d+ bytes of voxels"),
    "corrupt mha": ("zipped.mha", flip(""), r"zipped\.mha: damaged or truncated compressed data"),
    "truncated nii": (
        "c.nii",
        cut(""),
        r"c\.nii: found \d+ bytes of voxels, expected \d+.*truncated",
    ),
    "truncated nii.gz": ("c.nii.gz", cut(""), r"c\.nii\.gz: contains 4\d+ bytes when decompressed.*truncated"),
    "corrupt nii.gz": ("c.nii.gz", flip(""), r"c\.nii\.gz: "),
    "flipped bit in nii.gz": ("c.nii.gz", flip_stored_gzip, r"c\.nii\.gz: damaged or truncated .*incorrect data check"),
    "empty nii": ("c.nii", content(b""), r"c\.nii: not a NIfTI file"),
    "garbage nii": ("c.nii", content(b"garbage" * 100), r"c\.nii: not a NIfTI file"),
    "garbage nii.gz": ("c.nii.gz", content(b"garbage" * 100), r"c\.nii\.gz: not a NIfTI file"),
    "4-D nii": ("c.nii", other_dimensions, r"c\.nii: a scan has 3 dimensions, found 4"),
    "colour nii": ("c.nii", colours, r"c\.nii: a scan has 3 dimensions, found 5"),
    "truncated nrrd": ("d.nrrd", cut(""), r"d\.nrrd: found \d+ bytes of voxels, expected 7680"),
    "truncated zipped nrrd": ("zipped.nrrd", cut(""), r"zipped\.nrrd: contains .* when decompressed.*truncated"),
    "flipped bit in zipped nrrd": (
        "zipped.nrrd",
        flip_stored_nrrd,
        r"zipped\.nrrd: damaged or truncated .*incorrect data check",
    ),
    "nrrd lies about its size": ("d.nrrd", edit("sizes: 20", "sizes: 40"), r"d\.nrrd: found 7680 .* expected 15360"),
    "nrrd without spacing": (
        "d.nrrd",
        edit("space directions:", "# space:"),
        r"d\.nrrd: the header contains no voxel spac",
    ),
    "garbage nrrd": ("d.nrrd", content(b"garbage" * 100), r"d\.nrrd: cannot be read"),
    "detached nrrd": (
        "d.nrrd",
        edit("encoding: raw", "data file: d.raw\nencoding: raw"),
        r"d\.nrrd: cannot be read|d\.nrrd: voxels must be in the file itself",
    ),
    "nii of an unknown type": (
        "c.nii",
        byte(70, 52),
        r"c\.nii: not a NIfTI file, or its header is damaged \(data code 52",
    ),
    "nii of a wrong length": ("c.nii", byte(0, 91), r"c\.nii: not a NIfTI file, or its header is damaged"),
    "no DICOM": ("dicom", no_slices, r"dicom: no DICOM slices of a CT in this folder"),
    "missing slice": (
        "dicom",
        drop_slice,
        r"dicom: slices are missing, duplicated or unevenly spaced: .* 5\.000 mm apart, most others",
    ),
    "double slice": (
        "dicom",
        double_slice,
        r"dicom: slices are missing, duplicated or unevenly spaced: .* 0\.000 mm apart",
    ),
    "slice cut short": ("dicom", cut_slice(10), r"1\.2\.3-005\.dcm: a damaged DICOM slice"),
    "slice cut in half": ("dicom", cut_slice(300), r"1\.2\.3-005\.dcm: a damaged DICOM slice"),
    "slice cut in its header": ("dicom", cut_slice(800), r"1\.2\.3-005\.dcm: missing tags: .*PixelSpacing"),
    "tilted gantry": ("dicom", shear_slices, r"dicom: slices are displaced sideways by up to 5\.50 mm"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_line_that_names_the_file(damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, change, message = DAMAGE[damage]
    path = write(make_image(), tmp_path / name)
    read_scan(path)
    change(path)
    capfd.readouterr()
    with pytest.raises(LunaError, match=message) as caught:
        read_scan(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mhd", r"missing\.mhd: no such file or folder"),
        ("missing.nii.gz", r"missing\.nii\.gz: no such file"),
        ("missing", r"missing: no such file or folder"),
        ("table.csv", r"table\.csv: unknown file type; supported: \.mhd, "),
    ],
)
@pytest.mark.parametrize("function", [read_header, read_scan])
def test_what_is_no_scan(function: Callable[[Path], object], name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(LunaError, match=message):
        function(tmp_path / name)


@pytest.mark.parametrize("size", [65_534, 65_535, 65_536])
def test_gzip_in_several_members(size: int, tmp_path: Path) -> None:
    """A member may end one byte before the end of a chunk of 64 KiB, in the middle of the next magic number."""
    content = np.arange(100_000, dtype="<i2").tobytes()

    def member(part: bytes, comment: int) -> bytes:
        made = bytearray(gzip.compress(part, compresslevel=0))
        made[3] = 16  # a comment follows the header
        return bytes(made[:10]) + b"x" * comment + b"\0" + bytes(made[10:])

    first = member(content[:60_000], size - len(member(content[:60_000], 0)))
    assert len(first) == size
    (tmp_path / "a.gz").write_bytes(first + gzip.compress(content[60_000:]))
    found = inflate_voxels(tmp_path / "a.gz", 0, 0, np.dtype("<i2"), (10, 100, 100), exact=True)
    assert found.tobytes() == content


def test_a_header_is_read_once(tmp_path: Path) -> None:
    header = read_header(write(make_image(), tmp_path / "a.mhd"))
    (tmp_path / "a.mhd").write_text("changed since")
    np.testing.assert_array_equal(read_scan(header).voxels, sitk.GetArrayFromImage(make_image()))


# -------------------------------------------------------------------------------------------------------- real scans
def test_all_headers_of_luna16_in_a_second(shared_data: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(shared_data / "luna16_tables" / "luna16_mhd_headers.zip", tmp_path)
    paths = sorted(tmp_path.rglob("*.mhd"))
    assert len(paths) == 888
    start = time.process_time()
    geometries = [read_fields(path)["geometry"] for path in paths]
    assert time.process_time() - start < 2
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for path, geometry in list(zip(paths, geometries, strict=True))[::8]:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        assert reader.GetSize() == geometry.size
        assert reader.GetSpacing() == geometry.spacing
        assert reader.GetOrigin() == geometry.origin
        assert reader.GetDirection() == tuple(np.ravel(geometry.direction))
    sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    assert sum(geometry.direction[0][0] < 0 for geometry in geometries) == 14


def test_real_scans_are_as_simpleitk_reads_them(luna16_mini: Path) -> None:
    path = min(luna16_mini.glob("subset*/*.mhd"))
    scan = read_scan(path)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(scan.voxels, sitk.GetArrayViewFromImage(image))
    assert scan.geometry.size == image.GetSize()


def test_golden_voxel_positions(shared_data: Path, luna16_mini: Path) -> None:
    golden = np.load(shared_data / "book" / "golden_luna16_mini.npz")
    for path in luna16_mini.glob("subset*/*.mhd"):
        rows = golden["seriesuid"] == path.stem
        found = read_header(path).geometry.world_to_index(golden["center_xyz"][rows])
        np.testing.assert_array_equal(found, golden["center_irc"][rows])
