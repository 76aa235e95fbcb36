"""``luna-monai froc``: its table, its files and its answers to bad input."""

import json
import logging

import pytest

from luna_monai.apps.cli import run_app
from luna_monai.apps.froc import LunaFrocApp, read_seriesuids
from luna_monai.errors import LunaError

HEADER = "seriesuid,coordX,coordY,coordZ,probability\n"


@pytest.fixture
def files(tmp_path):
    """A submission on two scans with one nodule each: the first is found, between two false positives."""
    contents = {
        "submission": HEADER + "a,0,0,0,0.8\na,50,0,0,0.9\nb,90,0,0,0.1\n",
        "annotations": "seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,1,5\nb,0,0,1,5\n",
        "excluded": "seriesuid,coordX,coordY,coordZ,diameter_mm\nb,91,0,0,-1\n",
        "seriesuids": "a\nb\n",
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.csv").write_text(content)
    return tmp_path


def arguments(folder, *more):
    names = ("annotations", "excluded", "seriesuids")
    return [folder / "submission.csv", *(f"--{name}={folder / name}.csv" for name in names), *more]


def test_table_json_and_plot(files, caplog):
    caplog.set_level(logging.INFO)
    out, plot = files / "out.json", files / "out.png"
    assert LunaFrocApp(arguments(files, f"--json={out}", f"--plot={plot}", "--bootstrap=20")).main() == 0
    assert "CPM 0.3571" in caplog.text
    assert "CPM 0.3571 (95% interval" in caplog.text
    content = json.loads(out.read_text())
    assert content["sensitivity"] == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert (content["true_positives"], content["false_positives"], content["false_negatives"]) == (1, 1, 1)
    assert content["ignored_candidates_on_excluded_findings"] == 1
    assert content["curve"]["threshold"][0] is None
    assert content["bootstrap"]["samples"] == 20
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in files.iterdir() if path.suffix not in (".csv",)) == ["out.json", "out.png"]


@pytest.mark.parametrize("name", ["a$x^$.csv", "肺结节.csv", "s\udcff.csv"])
def test_any_name_of_a_submission(files, name):
    (files / "submission.csv").rename(files / name)
    outputs = f"--json={files / 'out.json'}", f"--plot={files / 'out.png'}"
    assert LunaFrocApp([files / name, *arguments(files, *outputs, "--bootstrap=0")[1:]]).main() == 0
    assert (files / "out.png").exists()
    assert json.loads((files / "out.json").read_text(encoding="utf-8"))["submission"] == name.replace("\udcff", "?")


def test_without_bootstrap_and_excluded_findings(files, caplog):
    caplog.set_level(logging.INFO)
    app = LunaFrocApp([*arguments(files)[:2], f"--seriesuids={files / 'seriesuids.csv'}", "--bootstrap=0"])
    app.main()
    assert "interval" not in caplog.text
    # Without the list, what lies on the excluded finding is a false positive, and the command says so.
    assert "no annotations_excluded.csv: candidates on its findings count as false positives" in caplog.text
    assert any(line.split() == ["false", "positives", "2"] for line in caplog.text.splitlines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "submission.csv: the file is empty"),
        ("seriesuid,coordX,coordY,coordZ\na,0,0,0\n", "submission.csv: no column 'probability'"),
        (
            HEADER + "a,0,0,0,0.5\na,0,0,0,high\n",
            "submission.csv, line 3: 'probability' must be a number, found 'high'",
        ),
        (HEADER + "a,0,0,0,\n", "submission.csv, line 2: 'probability' must be a number, found nothing"),
        (HEADER + "a,0,0,0,nan\n", "submission.csv, line 2: 'probability' must be a number"),
        (HEADER + "a,0,zero,0,0.5\n", "submission.csv, line 2: 'coordY' must be a number, found 'zero'"),
        (
            HEADER + "a,0,0,0,1.01\n",
            "submission.csv: expected a probability from 0 to 1 in one of the 2 scans to evaluate",
        ),
        (HEADER + "a,0,0,0,0.5\nc,0,0,0,0.5\n", "found 0.5 in c in data row 2 (1 such rows)"),
        (
            "seriesuid,coordX,coordY,coordZ,probability,Probability\na,0,0,0,0.5,0.5\n",
            "submission.csv, line 1: several columns for 'probability', found seriesuid,coordX",
        ),
        (None, "submission.csv: no such file"),
    ],
)
def test_bad_submission_is_one_line_and_writes_nothing(files, capsys, content, message):
    path = files / "submission.csv"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    out = files / "out.json"
    assert run_app(LunaFrocApp, arguments(files, f"--json={out}")) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n\n", "seriesuids.csv: expected one series UID per line, found 'nothing'"),
        ("a,b\n", "seriesuids.csv: expected one series UID per line, found 'a,b'"),
        ("uid\n1.2.3\n1.2.4\n", "seriesuids.csv: line 1 is not a series UID like the others, found 'uid'"),
        ("0\n1.2.3\n1.2.4\n", "seriesuids.csv: line 1 is not a series UID like the others, found '0'"),
    ],
)
def test_bad_list_of_scans(files, content, message):
    (files / "seriesuids.csv").write_text(content)
    with pytest.raises(LunaError, match=message):
        LunaFrocApp(arguments(files)).main()


def test_negative_diameters_of_nodules_are_mentioned(files, caplog):
    (files / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,0,0,1,-5\nb,0,0,1,5\n")
    assert LunaFrocApp(arguments(files, "--bootstrap=0")).main() == 0
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert "annotations.csv: 1 nodules have a negative diameter_mm; they count as 10 mm wide" in warning


def test_names_without_dots_are_allowed(files):
    (files / "seriesuids.csv").write_text('scan_01\n1.2.3 \n\n"my scan"\n')
    assert read_seriesuids(files / "seriesuids.csv") == ["scan_01", "1.2.3", "my scan"]
    (files / "seriesuids.csv").write_text("anna\nben1\nclara\n")
    assert read_seriesuids(files / "seriesuids.csv") == ["anna", "ben1", "clara"]


@pytest.mark.parametrize("name", ["seriesuid", "SeriesInstanceUID", '"series_uid"'])
def test_header_line_in_the_list_of_scans_is_allowed(files, caplog, name):
    caplog.set_level(logging.INFO)
    (files / "seriesuids.csv").write_text(f"{name}\r\na\r\nb\r\n")
    assert LunaFrocApp(arguments(files, "--bootstrap=0")).main() == 0
    assert caplog.messages[0].splitlines()[0].split() == ["scans", "2"]


@pytest.mark.parametrize(("option", "ending"), [("json", ".json"), ("plot", ".png")])
def test_an_input_is_not_overwritten(files, option, ending):
    before = (files / "annotations.csv").read_bytes()
    with pytest.raises(LunaError, match=f"annotations.csv: the file name must end with {ending}"):
        LunaFrocApp(arguments(files, f"--{option}={files / 'annotations.csv'}")).main()
    assert (files / "annotations.csv").read_bytes() == before


def test_unwritable_output_and_bad_numbers_are_named(files):
    with pytest.raises(LunaError, match="cannot write to the folder"):
        LunaFrocApp(arguments(files, f"--json={files / 'submission.csv' / 'out.json'}")).main()
    for samples in (-1, 10**9):
        with pytest.raises(LunaError, match=f"between 0 and 100,000, found {samples:,}"):
            LunaFrocApp(arguments(files, f"--bootstrap={samples}")).main()
