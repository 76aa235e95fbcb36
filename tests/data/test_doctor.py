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

from luna_monai.data.doctor import LUNA16_SUBSETS, examine_dataset
from luna_monai.data.doctor_codes import CODES, ERROR, INFORMATION, WARNING, Finding
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
    return [(each.severity, each.code) for each in findings if each.severity != INFORMATION]


def test_healthy_dataset(dataset: Path) -> None:
    findings = examine_dataset(dataset, deep=True)
    assert wrong(findings) == []
    assert {each.code: each.message for each in findings} == {
        "overview": "3 scans in 2 subsets, 9 candidates (3 of class 1) in candidates.csv, 3 nodules in annotations.csv",
        "incomplete": "3 of 888 scans; subset0: 2 of 89 scans; subset1: 1 of 89 scans; none in subset2, subset3, "
        "subset4, subset5, subset6, subset7, subset8, subset9",
    }


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

#: name: (what is done, severity, code, subject, part of the message, codes that follow from it)
TROUBLE = {
    "missing raw": (unlink(RAW), ERROR, "bad-scan", HEADER, "1.1.raw: no such file", set()),
    "missing header": (
        unlink(HEADER),
        ERROR,
        "orphan-voxels",
        RAW,
        "there is no 1.1.mhd",
        set(),
    ),
    "extra zraw": (
        write("subset0/1.1.zraw", "x"),
        WARNING,
        "orphan-voxels",
        "subset0/1.1.zraw",
        "names another file",
        set(),
    ),
    "truncated raw": (truncate(RAW, 1000), ERROR, "bad-scan", HEADER, "found 1000 bytes of voxels", set()),
    "empty raw": (truncate(RAW, 0), ERROR, "bad-scan", HEADER, "found 0 bytes of voxels", set()),
    "header lies": (substitute(HEADER, "48 50 34", "48 50 35"), ERROR, "bad-scan", HEADER, "says 168000", set()),
    "garbage header": (write(HEADER, "\x00\x01\x02\n"), ERROR, "bad-scan", HEADER, "not a MetaImage header", set()),
    "empty header": (write(HEADER, ""), ERROR, "bad-scan", HEADER, "ends without", set()),
    "one raw for two": (
        substitute(HEADER, "1.1.raw", "1.2.raw"),
        ERROR,
        "shared-voxels",
        "subset0/1.2.mhd",
        "1.1.mhd both name 1.2.raw",
        {"orphan-voxels"},
    ),
    "series twice": (
        several(copy(HEADER, "subset1/1.1.mhd"), copy(RAW, "subset1/1.1.raw")),
        ERROR,
        "same-series-twice",
        "subset1/1.1.mhd",
        "is also subset0/1.1.mhd",
        set(),
    ),
    "nested subset": (
        several(move(HEADER, "subset0/subset0/1.1.mhd"), move(RAW, "subset0/subset0/1.1.raw")),
        WARNING,
        "misplaced-scan",
        "subset0/subset0/1.1.mhd",
        "lies in",
        set(),
    ),
    "wrong subset name": (
        move("subset1", "subset12"),
        ERROR,
        "misplaced-scan",
        "subset12/1.3.mhd",
        "none of LUNA16's subset0 … subset9",
        set(),
    ),
    "hidden copies": (write("subset0/._1.1.mhd", "x"), WARNING, "stray-file", "subset0/._1.1.mhd", "not a CT", set()),
    "thick slices": (
        substitute(HEADER, "0.69999999999999996 0.69999999999999996 1.25", "0.7 0.7 1.25e1"),
        WARNING,
        "odd-spacing",
        HEADER,
        "12.5 mm across",
        set(),
    ),
    "oblong voxels": (
        substitute(HEADER, "0.69999999999999996 0.69999999999999996", "0.7 0.75"),
        WARNING,
        "odd-spacing",
        HEADER,
        "0.7 × 0.75 mm",
        set(),
    ),
    "zero spacing": (
        substitute(HEADER, "0.69999999999999996", "0"),
        ERROR,
        "bad-scan",
        HEADER,
        "must be three positive numbers",
        set(),
    ),
    "small scan": (
        several(substitute(HEADER, "48 50 34", "48 50 24"), truncate(RAW, 48 * 50 * 24 * 2)),
        ERROR,
        "small-scan",
        HEADER,
        "(24, 50, 48) voxels",
        set(),
    ),
    "no candidate table": (
        unlink("candidates.csv"),
        ERROR,
        "bad-table",
        "candidates.csv",
        "no such file",
        set(),
    ),
    "empty annotations": (write("annotations.csv", ""), ERROR, "bad-table", "annotations.csv", "is empty", set()),
    "no number": (
        substitute("candidates.csv", "1.1,-80,", "1.1,x,"),
        ERROR,
        "bad-table",
        "candidates.csv",
        "line 3: 'coordX' must be a number, found 'x'",
        set(),
    ),
    "no excluded": (
        unlink("annotations_excluded.csv"),
        WARNING,
        "no-excluded",
        "annotations_excluded.csv",
        "no",
        set(),
    ),
    "damaged excluded": (
        write("annotations_excluded.csv", "a,b\n1,2\n"),
        ERROR,
        "bad-table",
        "annotations_excluded.csv",
        "no column 'seriesuid'",
        set(),
    ),
    "class 2": (
        append("candidates.csv", "1.1,-81,-100,-190,2"),
        ERROR,
        "bad-class",
        "candidates.csv data row 10",
        "class is 2",
        set(),
    ),
    "no diameter": (
        append("annotations.csv", "1.1,-81,-100,-190,0"),
        ERROR,
        "bad-diameter",
        "annotations.csv data row 4",
        "is 0 mm",
        {"nodule-without-candidate"},
    ),
    "candidate outside": (
        append("candidates.csv", "1.3,-80,-100,-150,0"),
        ERROR,
        "outside-volume",
        "candidates.csv data row 10",
        "x,y,z (-80, -100, -150) mm is voxel z,y,x (40, 29, 29) of (34, 50, 48) of 1.3",
        set(),
    ),
    "nodule outside": (
        append("annotations.csv", "1.3,80,-100,-190,6"),
        ERROR,
        "outside-volume",
        "annotations.csv data row 4",
        "voxel z,y,x (8, 29, 257)",
        {"nodule-without-candidate"},
    ),
    "row twice": (
        append("candidates.csv", "1.1,-80,-100,-190,0"),
        WARNING,
        "duplicate-rows",
        "candidates.csv 1.1",
        "data rows 2, 10",
        set(),
    ),
    "rows disagree": (
        append("annotations.csv", "1.1,-90.5,-110.25,-180,9"),
        ERROR,
        "contradictory-rows",
        "annotations.csv 1.1",
        "data rows 1, 4 have diameter_mm 6.5, 9",
        set(),
    ),
    "nodule without candidate": (
        append("annotations.csv", "1.2,-80,-100,-190,6"),
        WARNING,
        "nodule-without-candidate",
        "annotations.csv data row 4",
        "6.0 mm nodule of 1.2",
        set(),
    ),
    "candidate without nodule": (
        append("candidates.csv", "1.2,-95,-100,-190,1"),
        WARNING,
        "candidate-without-nodule",
        "candidates.csv data row 10",
        "of 1.2",
        set(),
    ),
    "series without candidates": (
        write("candidates.csv", TABLE_HEAD + "1.1,-90.5,-110.25,-180,1\n1.2,-90.5,-110.25,-180,1\n"),
        WARNING,
        "no-candidates",
        "subset1/1.3.mhd",
        "candidates.csv has no row of it",
        {"nodule-without-candidate"},
    ),
    "candidates of others": (
        write("candidates.csv", TABLE_HEAD + "9.9,-80,-100,-190,0\n"),
        ERROR,
        "no-ct",
        "candidates.csv",
        "none of its 1 rows has its CT",
        {"no-candidates", "nodule-without-candidate"},
    ),
    "list names more": (
        write("seriesuids.csv", "1.1\n1.2\n1.3\n1.4\n"),
        WARNING,
        "missing-scan",
        "seriesuids.csv 1.4",
        "no CT",
        set(),
    ),
    "list names less": (
        write("seriesuids.csv", "1.1\n1.2\n"),
        WARNING,
        "unlisted-scan",
        "subset1/1.3.mhd",
        "not in",
        set(),
    ),
    "list is binary": (
        lambda dataset: (dataset / "seriesuids.csv").write_bytes(b"\xff\xfe\x00"),
        ERROR,
        "bad-table",
        "seriesuids.csv",
        "cannot be read",
        set(),
    ),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_found_and_nothing_else(trouble: str, dataset: Path) -> None:
    change, severity, code, subject, message, follows = TROUBLE[trouble]
    change(dataset)
    findings = examine_dataset(dataset)
    (found,) = [each for each in findings if each.severity == severity and each.code == code]
    assert found.subject == subject
    assert message in found.message
    assert "\n" not in found.message
    assert found.title
    assert found.advice
    assert {name for _, name in wrong(findings)} == {code} | follows


def test_candidates_of_missing_scans_are_mentioned(dataset: Path) -> None:
    append("candidates.csv", "9.9,-80,-100,-190,0")(dataset)
    findings = examine_dataset(dataset)
    assert wrong(findings) == []
    (found,) = [each for each in findings if each.code == "no-ct"]
    assert (found.subject, found.message) == ("candidates.csv 9.9", "1 rows")
    strict = examine_dataset(dataset, expect_complete=True)
    assert (ERROR, "no-ct") in wrong(strict)
    assert wrong(strict).count((ERROR, "incomplete")) == 10


def test_a_missing_scan_of_ten_subsets_is_an_error(dataset: Path) -> None:
    for subset in range(10):
        (dataset / f"subset{subset}").mkdir(exist_ok=True)
    write("seriesuids.csv", "1.1\n1.2\n1.3\n1.4\n")(dataset)
    assert wrong(examine_dataset(dataset)) == [(ERROR, "missing-scan")]


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    assert {code for _, code in wrong(examine_dataset(tmp_path))} == {"no-scans", "bad-table", "no-excluded"}
    with pytest.raises(LunaError, match="nowhere: no such folder"):
        examine_dataset(tmp_path / "nowhere")


def test_second_candidate_table_is_used_when_there_is_no_first(dataset: Path) -> None:
    move("candidates.csv", "candidates_V2.csv")(dataset)
    findings = examine_dataset(dataset)
    assert wrong(findings) == []
    assert any("candidates_V2.csv" in each.message for each in findings)


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


DEEP_TROUBLE = {
    "no rescale": (edit_voxels(HEADER, lambda v: v + 1024), ERROR, "wrong-rescale", HEADER, "air is near 0"),
    "no rescale, padded": (edit_voxels(HEADER, lambda v: pad(v + 1024)), ERROR, "wrong-rescale", HEADER, "far more"),
    "scaled to 1": (edit_voxels(HEADER, lambda v: v / np.float32(1000)), ERROR, "wrong-rescale", HEADER, "0.0% of"),
    "holes in the file": (edit_voxels(HEADER, zero_tail), ERROR, "empty-slices", HEADER, "4 slices hold nothing but 0"),
    "padded slice": (edit_voxels(HEADER, padded_end), WARNING, "empty-slices", HEADER, "1 slices hold nothing but one"),
    "same voxels": (
        copy(RAW, "subset1/1.3.raw"),
        ERROR,
        "same-voxels",
        HEADER,
        "is the same as subset1/1.3.mhd",
    ),
    "damaged zraw": (compress_and_flip, ERROR, "bad-voxels", HEADER, "1.1.zraw: "),
    "padding": (edit_voxels(HEADER, pad), INFORMATION, "padding", HEADER, "10.0% of the voxels are below -1024 HU"),
    "fractions": (
        edit_voxels(HEADER, lambda v: v + np.float32(0.5)),
        WARNING,
        "fractional-voxels",
        HEADER,
        "float32",
    ),
}


@pytest.mark.parametrize("trouble", DEEP_TROUBLE)
def test_trouble_that_only_the_voxels_show(trouble: str, dataset: Path) -> None:
    change, severity, code, subject, message = DEEP_TROUBLE[trouble]
    change(dataset)
    assert wrong(examine_dataset(dataset)) == []
    findings = examine_dataset(dataset, deep=True, num_workers=2)
    (found,) = [each for each in findings if each.severity == severity and each.code == code]
    assert found.subject == subject
    assert message in found.message
    assert {name for _, name in wrong(findings)} <= {code, "fractional-voxels"}


def test_equal_hounsfield_units_in_another_type_are_the_same_voxels(dataset: Path) -> None:
    copy(RAW, "subset1/1.3.raw")(dataset)
    edit_voxels("subset1/1.3.mhd", lambda v: v.astype(np.float32))(dataset)
    assert wrong(examine_dataset(dataset, deep=True)) == [(ERROR, "same-voxels")]


def test_every_code_is_explained() -> None:
    for title, advice in list(CODES.values())[1:]:
        assert title
        assert advice
        assert not advice.endswith(".")


def test_full_size_in_time(tmp_path: Path) -> None:
    """888 scans of real size (as sparse files) and 551,065 candidates, without reading voxels."""
    rng = np.random.default_rng(0)
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{number:030d}" for number in range(888)]
    subsets = np.repeat(np.arange(10), LUNA16_SUBSETS)
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
    start = time.perf_counter()
    findings = examine_dataset(tmp_path, expect_complete=True)
    seconds = time.perf_counter() - start
    assert wrong(findings) == []
    assert [each.code for each in findings] == ["overview"]
    assert seconds < 20


def test_real_scans(luna16_mini: Path) -> None:
    findings = examine_dataset(luna16_mini, deep=True, num_workers=2)
    assert wrong(findings) == []
    assert sorted(each.code for each in findings) == ["incomplete", "overview", "padding", "padding"]
