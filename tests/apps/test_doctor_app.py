"""The doctor's report, as a person and as a program reads it."""

import logging
from pathlib import Path

import pytest

from luna_monai.apps.cli import run_app
from luna_monai.apps.doctor import LunaDoctorApp

HEADER = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = False\nOffset = 0 0 0\n"
    "ElementSpacing = 0.7 0.7 1.25\nDimSize = 64 64 40\nElementType = MET_SHORT\nElementDataFile = {}.raw\n"
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "subset0").mkdir()
    for uid in ("1.1", "1.2"):
        (tmp_path / "subset0" / f"{uid}.mhd").write_text(HEADER.format(uid))
        (tmp_path / "subset0" / f"{uid}.raw").write_bytes(bytes(64 * 64 * 40 * 2))
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.1,10,10,10,5\n")
    (tmp_path / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    (tmp_path / "candidates.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\n1.1,10,10,10,1\n1.1,20,20,20,0\n1.2,20,20,20,0\n"
    )
    return tmp_path


def test_a_good_dataset(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert LunaDoctorApp(["--dataset-dir", dataset]).main() == 0
    assert "no errors: 0 errors, 0 warnings" in caplog.text
    assert "2 CTs in subset0; 3 rows in candidates.csv" in caplog.text


def test_problems_are_counted_and_a_few_are_shown(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (dataset / "candidates.csv").open("a") as stream:
        stream.writelines(f"1.1,20,20,{400 + z},0\n" for z in range(7))
    (dataset / "subset0" / "1.2.raw").unlink()
    with caplog.at_level(logging.INFO):
        assert LunaDoctorApp(["--dataset-dir", dataset]).main() == 1
    report = caplog.messages
    start = report.index("ERROR (7): a position outside its CT: correct the row, or set outside_volume=drop")
    assert report[start + 1] == (
        "    candidates.csv: 1.1 at (20, 20, 400) mm = voxel z,y,x (320, 29, 29) of (40, 64, 64)"
    )
    assert report[start + 6] == "ERROR (1): a CT that cannot be used"
    assert report[-1] == "errors found: 8 errors, 0 warnings"


def test_deep_is_passed_on(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert LunaDoctorApp(["--dataset-dir", dataset, "--deep", "--num-workers", 1]).main() == 1
    for kind in ("voxels that are not in HU", "slices with a single value"):
        assert f": {kind}" in caplog.text


def test_no_such_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(LunaDoctorApp, ["--dataset-dir", tmp_path / "nowhere"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("luna-monai doctor: error: ")
    assert error.count("\n") == 1
