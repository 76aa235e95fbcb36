"""Reading a run folder: what is needed, what may be missing and what is refused."""

import numpy as np
import pandas as pd
import pytest

from luna_monai.errors import LunaError
from luna_monai.reports.run import read_run


def test_everything_is_read(run_folder, dataset):
    run = read_run(run_folder)
    expected = pd.read_csv(run_folder / "predictions" / "val.csv", dtype={"seriesuid": str})
    np.testing.assert_array_equal(run.validation["probability"], expected["probability"])
    assert run.validation["class"].tolist() == expected["class"].astype(bool).tolist()
    assert run.metrics["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    assert (len(run.annotations), len(run.excluded)) == (3, 1)
    assert [run.subset(uid) for uid in ("1.1", "1.2", "9.9")] == [0, 3, None]
    assert run.notes == []


def test_missing_parts_are_noted(run_folder, dataset):
    (run_folder / "predictions" / "trn.csv").unlink()
    dataset.rename(dataset.with_name("elsewhere"))
    run = read_run(run_folder)
    assert run.training is None
    assert run.annotations is None
    assert ["training predictions" in run.notes[0], "--dataset-dir" in run.notes[1]] == [True, True]
    assert read_run(run_folder, dataset.with_name("elsewhere")).annotations is not None
    (run_folder / "config.yaml").unlink()
    assert any("config.yaml" in note for note in read_run(run_folder).notes)


def test_undefined_metrics_are_nan(run_folder):
    path = run_folder / "metrics.csv"
    table = pd.read_csv(path)
    table.loc[0, "roc_auc"] = np.nan
    table["pr/precision"] = np.nan
    table.to_csv(path, index=False)
    metrics = read_run(run_folder).metrics
    assert np.isnan(metrics.loc[0, "roc_auc"])
    assert metrics["pr/precision"].isna().all()


def damage(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "metrics.csv").unlink(), "metrics.csv: no such file, so there is nothing to report"),
        (lambda run: (run / "predictions" / "val.csv").unlink(), "val.csv: no such file"),
        (
            lambda run: (run / "predictions" / "val.csv").write_text(""),
            "val.csv: cannot be read .No columns to",
        ),
        (lambda run: damage(run / "predictions" / "val.csv", "probability", "p"), "val.csv: no column 'probability'"),
        (lambda run: damage(run / "predictions" / "val.csv", "\n0,1.1,", "\n0,1.1,x"), "val.csv, line 2: 'coordX'"),
        (lambda run: damage(run / "metrics.csv", "trn", "train"), "'split' must be trn or val, found train"),
        (
            lambda run: damage(run / "metrics.csv", "1,trn,165,", "1,trn,165,oops"),
            "line 2: 'loss/all' must be a number, found",
        ),
        (
            lambda run: (run / "metrics.csv").write_bytes(b"epoch,split\n1,\xff\n"),
            "metrics.csv: cannot be read ",
        ),
        (lambda run: (run / "metrics.csv").write_text("epoch,split\n1,trn,5\n"), "metrics.csv: cannot be read .Length"),
        (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml: not readable as YAML"),
        (lambda run: (run / "config.yaml").write_text("- 1"), "config.yaml: expected keys and values, found list"),
    ],
)
def test_damage_is_named(run_folder, break_it, message):
    break_it(run_folder)
    with pytest.raises(LunaError, match=message) as caught:
        read_run(run_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "message"), [("probability", 1.5, "between 0 and 1"), ("class", 2, "0 or 1")]
)
def test_impossible_values_are_named(run_folder, column, value, message):
    path = run_folder / "predictions" / "val.csv"
    table = pd.read_csv(path, dtype={"seriesuid": str})
    table.loc[3, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(LunaError, match=f"val.csv, line 5: '{column}' must be {message}, found {value:g}"):
        read_run(run_folder)


def test_undefined_predictions_are_nan(run_folder):
    path = run_folder / "predictions" / "val.csv"
    table = pd.read_csv(path, dtype={"seriesuid": str})
    table.loc[[2, 5], ["probability", "loss"]] = np.nan
    table.to_csv(path, index=False)
    validation = read_run(run_folder).validation
    assert np.flatnonzero(validation["probability"].isna()).tolist() == [2, 5]
    assert validation["seriesuid"].tolist() == table["seriesuid"].tolist()


def test_missing_folder_and_empty_predictions(run_folder, tmp_path):
    with pytest.raises(LunaError, match="no such folder; give the output_dir"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(LunaError, match=r"annotations\.csv: no such file"):
        read_run(run_folder, tmp_path)
    path = run_folder / "predictions" / "val.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(LunaError, match="a header line and no rows"):
        read_run(run_folder)
