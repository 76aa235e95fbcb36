"""Reading a run folder: what is needed, what may be missing and what is refused; and what is computed from it."""

import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from luna_monai.errors import LunaError
from luna_monai.reports.run import read_run
from luna_monai.reports.run_report import _diameter_table, best_epoch, run_froc, worst_candidates


@pytest.fixture
def run(run_folder):
    return read_run(run_folder)


def change(path, columns):
    """Change values of a table."""
    table = pd.read_csv(path, dtype={"seriesuid": str})
    for (row, column), value in columns.items():
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
    table.to_csv(path, index=False)


def test_everything_is_read(run, run_folder):
    expected = pd.read_csv(run_folder / "predictions" / "val.csv", dtype={"seriesuid": str})
    np.testing.assert_array_equal(run.validation["probability"], expected["probability"])
    assert run.validation["class"].tolist() == expected["class"].astype(bool).tolist()
    assert run.metrics["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    assert (len(run.annotations), len(run.excluded)) == (3, 1)
    assert run.notes == []


def test_missing_parts_are_noted_and_logged(run_folder, dataset, caplog):
    (run_folder / "predictions" / "trn.csv").unlink()
    dataset.rename(dataset.with_name("elsewhere"))
    run = read_run(run_folder)
    assert run.training is None
    assert run.annotations is None
    assert ["training predictions" in run.notes[0], "--dataset-dir" in run.notes[1]] == [True, True]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert read_run(run_folder, dataset.with_name("elsewhere")).annotations is not None
    (run_folder / "config.yaml").unlink()
    assert any("config.yaml" in note for note in read_run(run_folder).notes)


def test_predictions_of_series_that_the_dataset_lacks_are_one_warning(run_folder, dataset, caplog):
    (dataset / "subset0" / "1.1.mhd").unlink()
    run = read_run(run_folder)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("The CTs of 1 of 1 validation scans are not in luna.")
    assert run.notes == ["The CTs of 1 of 1 validation scans are not in luna."]


def test_undefined_values_are_nan(run_folder):
    change(run_folder / "metrics.csv", {(0, "roc_auc"): np.nan})
    assert np.isnan(read_run(run_folder).metrics.loc[0, "roc_auc"])


#: What is damaged (a file's content, or values of a table) and what the line says.
DAMAGE = {
    "no metrics": ("metrics.csv", None, "metrics.csv: No such file or directory; expected a table that"),
    "no predictions": ("predictions/val.csv", None, "val.csv: no such file"),
    "empty predictions": ("predictions/val.csv", "", "val.csv: the file is empty"),
    "no column": ("predictions/val.csv", "row,seriesuid\n", "val.csv: no column .*'probability'"),
    "binary": ("predictions/val.csv", "\x00\x01", "val.csv: "),
    "text for a number": (
        "predictions/val.csv",
        {(0, "coordX"): "x10"},
        "val.csv, line 2: 'coordX' must be a number, found 'x10'",
    ),
    "no coordinate": (
        "predictions/val.csv",
        {(3, "coordX"): np.nan},
        "val.csv, line 5: 'coordX' must be a number, found nothing",
    ),
    "class 2": ("predictions/val.csv", {(3, "class"): 2}, "val.csv, line 5: 'class' must be 0 or 1, found 2"),
    "probability 1.5": (
        "predictions/val.csv",
        {(3, "probability"): 1.5},
        "val.csv, line 5: 'probability' must be between 0 and 1",
    ),
    "training predictions": (
        "predictions/trn.csv",
        {(0, "loss"): "high"},
        "trn.csv, line 2: 'loss' must be a number, found 'high'",
    ),
    "text for a metric": ("metrics.csv", {(0, "loss/all"): "oops"}, "metrics.csv: could not convert.*oops"),
    "other columns": ("metrics.csv", "a,b\n", "metrics.csv: .*'epoch', 'split'"),
    "no epoch": ("metrics.csv", {(0, "epoch"): np.nan}, "metrics.csv: Integer column has NA"),
    "no YAML": ("config.yaml", "a: [1", "config.yaml: not the YAML of a run"),
    "no keys": ("config.yaml", "- 1", "config.yaml: not the YAML of a run"),
    "no config": ("config.yaml", "", "config.yaml: not the YAML of a run"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(run_folder, kind):
    name, damage, message = DAMAGE[kind]
    path = run_folder / name
    if damage is None:
        path.unlink()
    elif isinstance(damage, str):
        path.write_text(damage)
    else:
        change(path, damage)
    with pytest.raises(LunaError, match=message) as caught:
        read_run(run_folder)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_annotations_and_no_candidates(run_folder, tmp_path):
    with pytest.raises(LunaError, match=r"annotations\.csv: no such file"):
        read_run(run_folder, tmp_path)
    path = run_folder / "predictions" / "val.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(LunaError, match=r"val\.csv: no candidates"):
        read_run(run_folder)


def test_the_kept_epoch_is_found_by_its_loss(run):
    assert best_epoch(run.metrics, run.validation) == 2
    assert best_epoch(run.metrics, run.validation.assign(loss=0.0)) is None
    assert best_epoch(run.metrics.assign(**{"loss/all": np.nan}), run.validation) is None
    assert best_epoch(run.metrics.drop(columns="loss/all"), run.validation) is None


def test_froc_is_of_the_validation_scans(run):
    froc = run_froc(run, bootstrap=0)
    assert (froc.scans, froc.nodules) == (1, 2)
    assert 0 < froc.cpm < 1


def test_candidates_by_diameter(run):
    table = _diameter_table(run.validation, 0.5).frame.set_index("group")
    truth, called = run.validation["class"], run.validation["probability"] > 0.5
    assert table["candidates"].sum() == truth.sum() == 10
    assert table["found"].sum() / table["candidates"].sum() == pytest.approx(recall_score(truth, called))
    large = run.validation[run.validation["diameter_mm"] == 12]
    row = table.loc["10 to 15 mm"]
    assert row["candidates"] == len(large) == 5
    assert row["sensitivity"] == (large["probability"] > 0.5).mean()
    diameters = [0.0, 3.99, 4.0, 6.0, 9.9, 14.0, 19.0, 20.0, 55.0]
    nodules = run.validation.iloc[[0] * len(diameters)].assign(**{"diameter_mm": diameters, "class": True})
    assert _diameter_table(nodules, 0.5).frame["candidates"].tolist() == [1] * 7 + [2]


def test_worst_candidates_are_the_surest_mistakes(run):
    missed, alarms = worst_candidates(run.validation, 0.5)
    wrong = run.validation[run.validation["class"] != (run.validation["probability"] > 0.5)]
    for shown, of_class in ((missed, wrong[wrong["class"]]), (alarms, wrong[~wrong["class"]])):
        assert shown["row"].tolist() == of_class.sort_values("loss", ascending=False)["row"].tolist()
    # A probability of exactly the threshold calls no nodule.
    missed, alarms = worst_candidates(run.validation.assign(probability=0.5), 0.5)
    assert (len(missed), len(alarms)) == (10, 0)
