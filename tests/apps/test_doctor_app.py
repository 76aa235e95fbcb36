"""The doctor's report, as a person and as a program reads it."""

import json
import logging
import subprocess
import sys
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
    (tmp_path / "annotations_excluded.csv").write_text("seriesuid,coordX,coordY,coordZ\n")
    (tmp_path / "candidates.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\n1.1,10,10,10,1\n1.1,20,20,20,0\n1.2,20,20,20,0\n"
    )
    return tmp_path


def test_nothing_wrong(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert LunaDoctorApp(["--dataset-dir", dataset]).main() == 0
    assert "nothing is wrong: 0 errors, 0 warnings" in caplog.text
    assert "2 scans in 1 subsets, 3 candidates (1 of class 1)" in caplog.text


def test_many_of_a_kind_are_counted_and_a_few_shown(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (dataset / "candidates.csv").open("a") as stream:
        stream.writelines(f"1.1,20,20,{400 + z},0\n" for z in range(5))
    (dataset / "subset0" / "1.2.raw").unlink()
    with caplog.at_level(logging.INFO):
        assert LunaDoctorApp(["--dataset-dir", dataset]).main() == 1
    report = caplog.records[-1].getMessage().splitlines()
    start = report.index("ERROR: a position outside its CT (5 times)")
    assert report[start + 1].endswith(
        "candidates.csv data row 4: x,y,z (20, 20, 400) mm is voxel z,y,x (320, 29, 29) of (40, 64, 64) of 1.1"
    )
    assert report[start + 4] == "    … and 2 more, listed by --json"
    assert report[start + 5].startswith("    What to do: ")
    assert "ERROR: a CT that cannot be read" in report
    assert report[-1] == "something is wrong: 6 errors, 0 warnings"


def test_json_has_everything(dataset: Path, tmp_path: Path) -> None:
    with (dataset / "candidates.csv").open("a") as stream:
        stream.writelines(f"1.1,20,20,{400 + z},0\n" for z in range(5))
    assert LunaDoctorApp(["--dataset-dir", dataset, "--json", tmp_path / "found.json"]).main() == 1
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["counts"] == {"error": 5, "warning": 0, "information": 2}
    assert [each["subject"] for each in content["findings"][:5]] == [
        f"candidates.csv data row {row}" for row in range(4, 9)
    ]
    assert set(content["findings"][0]) == {"severity", "code", "subject", "message", "title", "advice"}


def test_deep_and_complete_are_passed_on(dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    arguments = ["--dataset-dir", dataset, "--json", file, "--deep", "--expect-complete", "--num-workers", 1]
    assert LunaDoctorApp(arguments).main() == 1
    codes = {each["code"] for each in json.loads(file.read_text())["findings"] if each["severity"] == "error"}
    assert codes == {"wrong-rescale", "empty-slices", "same-voxels", "incomplete"}


def test_no_such_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(LunaDoctorApp, ["--dataset-dir", tmp_path / "nowhere"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("luna-monai doctor: error: ")
    assert error.count("\n") == 1


def test_as_a_command(dataset: Path) -> None:
    (dataset / "subset0" / "1.2.raw").unlink()
    command = [sys.executable, "-m", "luna_monai", "doctor", "--dataset-dir", str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.endswith("something is wrong: 1 errors, 0 warnings\n")
