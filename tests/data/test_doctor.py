"""A healthy dataset has nothing wrong with it, and each thing done to it is found, and only that."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_monai.data.doctor import ERROR, INFORMATION, WARNING, Finding, examine_dataset
from luna_monai.errors import LunaError

SHAPE = (34, 50, 48)
SCANS = {"1.1": 0, "1.2": 0, "1.3": 1}


def write_scan(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    voxels = rng.normal(40, 30, SHAPE)
    voxels[:, 10:40, 10:40] = rng.normal(-850, 40, (SHAPE[0], 30, 30))
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing((0.7, 0.7, 1.25))
    image.SetOrigin((-100.0, -120.0, -200.0))
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    for seed, (uid, subset) in enumerate(SCANS.items()):
        write_scan(folder / f"subset{subset}" / f"{uid}.mhd", seed)
    nodule = "-90.5,-110.25,-180"
    (folder / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n" + "".join(f"{uid},{nodule},6.5\n" for uid in SCANS)
    )
    (folder / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    (folder / "candidates.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\n"
        + "".join(f"{uid},{nodule},1\n{uid},-80,-100,-190,0\n{uid},-85,-100,-190,0\n" for uid in SCANS)
    )
    return folder


@pytest.fixture
def dataset(healthy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(healthy, tmp_path / "luna ä"))


def wrong(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.severity, each.subject) for each in findings if each.severity != INFORMATION]


def test_healthy_dataset(dataset: Path) -> None:
    (found,) = examine_dataset(dataset, deep=True)
    assert found.severity == INFORMATION
    assert found.subject == (
        "2 CTs in subset0, 1 CTs in subset1; 9 rows in candidates.csv; 3 rows in annotations.csv; "
        "0 rows in annotations_excluded.csv"
    )


def substitute(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(dataset: Path) -> None:
        text = (dataset / name).read_text()
        assert old in text
        (dataset / name).write_text(text.replace(old, new, 1))

    return change


def append(name: str, line: str) -> Callable[[Path], object]:
    return lambda dataset: (dataset / name).write_text((dataset / name).read_text() + line + "\n")


def unlink(name: str) -> Callable[[Path], object]:
    return lambda dataset: (dataset / name).unlink()


def copy(source: str, target: str) -> Callable[[Path], object]:
    def change(dataset: Path) -> None:
        (dataset / target).parent.mkdir(exist_ok=True)
        shutil.copy(dataset / source, dataset / target)

    return change


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda dataset: (dataset / name).write_text(text)


def truncate(name: str, size: int) -> Callable[[Path], object]:
    return lambda dataset: os.truncate(dataset / name, size)


def move(source: str, target: str) -> Callable[[Path], object]:
    def change(dataset: Path) -> None:
        (dataset / target).parent.mkdir(exist_ok=True, parents=True)
        (dataset / source).rename(dataset / target)

    return change


def several(*changes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda dataset: [change(dataset) for change in changes] and None


HEADER, RAW = "subset0/1.1.mhd", "subset0/1.1.raw"
TABLE_HEAD = "seriesuid,coordX,coordY,coordZ,class\n"

#: What is done: severity, what is found, and a part of the text of each finding that follows from it.
TROUBLE = {
    "missing raw": (unlink(RAW), ERROR, "1.1.raw: no such file, but 1.1.mhd refers to it"),
    "missing header": (unlink(HEADER), ERROR, RAW),
    "extra zraw": (write("subset0/9.9.zraw", "x"), ERROR, "subset0/9.9.zraw"),
    "truncated raw": (truncate(RAW, 1000), ERROR, "found 1000 bytes of voxels"),
    "header lies": (substitute(HEADER, "48 50 34", "48 50 35"), ERROR, "expected 168000"),
    "garbage header": (write(HEADER, "\x00\x01\x02\n"), ERROR, "not a MetaImage header"),
    "series twice": (
        several(copy(HEADER, "subset1/1.1.mhd"), copy(RAW, "subset1/1.1.raw")),
        ERROR,
        "subset1/1.1.mhd and subset0/1.1.mhd",
    ),
    "nested subset": (
        several(copy(HEADER, "subset0/subset0/1.9.mhd"), copy(RAW, "subset0/subset0/1.9.raw")),
        ERROR,
        "subset0/subset0/1.9.mhd",
    ),
    "wrong subset name": (copy(HEADER, "subset0 (1)/1.9.mhd"), ERROR, "must be named subset0 … subset9; rename it"),
    "zero spacing": (
        substitute(HEADER, "0.69999999999999996", "0"),
        ERROR,
        "a spacing of 0 0.7 1.25 mm",
    ),
    "no candidate table": (unlink("candidates.csv"), ERROR, "candidates.csv: no such file"),
    "empty annotations": (write("annotations.csv", ""), ERROR, "annotations.csv: the file is empty"),
    "no number": (
        substitute("candidates.csv", "1.1,-80,", "1.1,x,"),
        ERROR,
        "candidates.csv, line 3: 'coordX' must be a number, found 'x'",
    ),
    "no excluded": (unlink("annotations_excluded.csv"), WARNING, "no annotations_excluded.csv: candidates on its"),
    "damaged excluded": (write("annotations_excluded.csv", "a,b\n1,2\n"), ERROR, "no column 'seriesuid'"),
    "class 2": (append("candidates.csv", "1.1,-81,-100,-190,2"), ERROR, "line 11: 'class' must be 0 or 1, found 2"),
    "negative diameter": (
        append("annotations.csv", "1.1,-81,-100,-190,-5"),
        ERROR,
        "line 5: 'diameter_mm' must be above 0, at most 300, found -5.0",
    ),
    "lost decimal point": (
        append("annotations.csv", "1.1,-81,-100,-190,2243.42"),
        ERROR,
        "line 5: 'diameter_mm' must be above 0, at most 300, found 2243.42",
    ),
    "excluded without diameters": (
        write("annotations_excluded.csv", "seriesuid,coordX,coordY,coordZ\n"),
        ERROR,
        "annotations_excluded.csv: no column 'diameter_mm'",
    ),
    "no candidates": (write("candidates.csv", TABLE_HEAD), ERROR, "candidates.csv: 0 of 0 rows"),
    "in another subset too": (
        several(copy(HEADER, "subset0 (1)/1.1.mhd"), copy(RAW, "subset0 (1)/1.1.raw")),
        ERROR,
        "subset0 (1)/1.1.mhd and subset0/1.1.mhd",
    ),
    "copy of a header": (copy(HEADER, "subset0/1.1 (1).mhd"), ERROR, "subset0/1.1 (1).mhd and subset0/1.1.mhd"),
    "small CT": (
        several(substitute(HEADER, "48 50 34", "48 50 20"), truncate(RAW, 48 * 50 * 20 * 2)),
        ERROR,
        "subset0/1.1.mhd: smaller than the crop of 32 x 48 x 48 voxels",
    ),
    "annotation outside": (
        append("annotations.csv", "1.3,-80,-100,-150,5"),
        ERROR,
        "annotations.csv: 1.3 at (-80, -100, -150) mm",
    ),
    "candidate outside": (
        append("candidates.csv", "1.3,-80,-100,-150,0"),
        ERROR,
        "candidates.csv: 1.3 at (-80, -100, -150) mm = voxel z,y,x (40, 29, 29) of (34, 50, 48)",
    ),
    "row twice": (
        append("candidates.csv", "1.1,-80,-100,-190,0"),
        WARNING,
        "candidates.csv: 1.1 at (-80, -100, -190) mm",
    ),
    "not a number in the header": (substitute(HEADER, "-100 -120", "nan -120"), ERROR, "an origin of nan -120 -200 mm"),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_found_and_nothing_else(trouble: str, dataset: Path) -> None:
    change, severity, expected = TROUBLE[trouble]
    change(dataset)
    # Rows of a scan that cannot be read are mentioned too, as those without a CT.
    (found,) = wrong(examine_dataset(dataset))
    assert found[0] == severity
    assert expected in found[1]
    assert "\n" not in found[1]


def link_subset(dataset: Path, target: Path | None = None) -> None:
    target = target or dataset.parent / "elsewhere"
    (dataset / "subset0").rename(target)
    (dataset / "subset0").symlink_to(target)


@pytest.mark.parametrize(
    "change",
    [
        write("subset0/._1.1.mhd", "x"),
        append("candidates.csv", "9.9,-80,-100,-190,0"),
        link_subset,
        lambda dataset: link_subset(dataset, dataset / "downloads"),
        several(copy(HEADER, "seg-lungs-LUNA16/1.1.mhd"), copy(HEADER, "seg-lungs-LUNA16/1.9.mhd")),
        several(
            move(HEADER, "subset0/1.1 (1).mhd"),
            move(RAW, "subset0/1.1 (1).raw"),
            substitute("subset0/1.1 (1).mhd", "1.1.raw", "1.1 (1).raw"),
        ),
        write("annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\n"),
        move(HEADER, "subset0/1.1.MHD"),
    ],
    ids=[
        "macOS",
        "no CT",
        "link",
        "link inside",
        "lung masks",
        "a name with a number",
        "no nodules",
        "upper case",
    ],
)
def test_what_does_no_harm(change: Callable[[Path], object], dataset: Path) -> None:
    change(dataset)
    assert wrong(examine_dataset(dataset)) == []


def test_candidates_of_others(dataset: Path) -> None:
    write("candidates.csv", TABLE_HEAD + "9.9,-80,-100,-190,0\n")(dataset)
    findings = examine_dataset(dataset)
    assert findings[0][::2] == (ERROR, "candidates.csv: 1 of 1 rows")


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert [severity for severity, _ in wrong(examine_dataset(tmp_path))] == [ERROR, ERROR, ERROR, WARNING]
    with pytest.raises(LunaError, match="nowhere: no such folder"):
        examine_dataset(tmp_path / "nowhere")


def test_second_candidate_table_is_used_when_there_is_no_first(dataset: Path) -> None:
    move("candidates.csv", "candidates_V2.csv")(dataset)
    findings = examine_dataset(dataset)
    assert wrong(findings) == []
    assert "9 rows in candidates_V2.csv" in findings[-1].subject


def edit_voxels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def edit(dataset: Path) -> None:
        image = sitk.ReadImage(str(dataset / name))
        edited = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
        edited.CopyInformation(image)
        sitk.WriteImage(edited, str(dataset / name))

    return edit


def zero_tail(voxels: np.ndarray) -> np.ndarray:
    voxels[30:] = 0
    return voxels


def pad(voxels: np.ndarray) -> np.ndarray:
    voxels[:, :5] = -3024
    return voxels


def padded_end(voxels: np.ndarray) -> np.ndarray:
    voxels[-1] = -1024
    return voxels


def compress_and_flip(dataset: Path) -> None:
    image = sitk.ReadImage(str(dataset / HEADER))
    (dataset / RAW).unlink()
    sitk.WriteImage(image, str(dataset / HEADER), useCompression=True)
    path = dataset / "subset0" / "1.1.zraw"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def not_finite(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    return voxels


DEEP_TROUBLE = {
    "no rescale": (edit_voxels(HEADER, lambda v: v + 1024), ERROR, "of the voxels are air or lung"),
    "no rescale, padded": (edit_voxels(HEADER, lambda v: pad(v + 1024)), ERROR, "1.1: 0.0% of the voxels"),
    "holes in the file": (edit_voxels(HEADER, zero_tail), ERROR, "4 slices, the first is z = 30"),
    "padded slice": (edit_voxels(HEADER, padded_end), WARNING, "1 slices, the first is z = 33"),
    "damaged zraw": (compress_and_flip, ERROR, "1.1.zraw: "),
    "NaN": (edit_voxels(HEADER, not_finite), WARNING, "1.1: 1 voxels are not finite; they are set to air (-1000 HU)"),
}


@pytest.mark.parametrize("trouble", DEEP_TROUBLE)
def test_trouble_that_only_the_voxels_show(trouble: str, dataset: Path) -> None:
    change, severity, expected = DEEP_TROUBLE[trouble]
    change(dataset)
    assert wrong(examine_dataset(dataset)) == []
    (found,) = wrong(examine_dataset(dataset, deep=True, num_workers=2))
    assert found[0] == severity
    assert expected in found[1]


def test_full_size_in_time(tmp_path: Path) -> None:
    """888 scans of real size (as sparse files) and 551,065 candidates, without reading voxels."""
    rng = np.random.default_rng(0)
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:030d}" for number in range(888)]
    subsets = np.arange(888) % 10
    for uid, subset in zip(uids, subsets, strict=True):
        folder = tmp_path / f"subset{subset}"
        folder.mkdir(exist_ok=True)
        (folder / f"{uid}.mhd").write_text(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
            "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -160 -160 -300\nElementSpacing = 0.7 0.7 1.25\n"
            f"DimSize = 512 512 260\nElementType = MET_SHORT\nElementDataFile = {uid}.raw\n"
        )
        with (folder / f"{uid}.raw").open("wb") as stream:
            stream.truncate(512 * 512 * 260 * 2)
    points = rng.uniform([-160, -160, -300], [190, 190, 20], (551065, 3)).round(2)
    candidates = pd.DataFrame({"seriesuid": rng.choice(uids, len(points)), "coordX": points[:, 0]})
    candidates = candidates.assign(coordY=points[:, 1], coordZ=points[:, 2]).assign(**{"class": 0})
    nodules = candidates[:1186].rename(columns={"class": "diameter_mm"}).assign(diameter_mm=6.0)
    candidates.loc[:1185, "class"] = 1
    candidates.to_csv(tmp_path / "candidates.csv", index=False)
    nodules.to_csv(tmp_path / "annotations.csv", index=False)
    nodules[:0].to_csv(tmp_path / "annotations_excluded.csv", index=False)
    start = time.process_time()
    findings = examine_dataset(tmp_path)
    seconds = time.process_time() - start
    assert [each.severity for each in findings] == [INFORMATION]
    assert seconds < 20


def test_real_scans(luna16_mini: Path) -> None:
    assert [each.severity for each in examine_dataset(luna16_mini, deep=True, num_workers=2)] == [INFORMATION]
