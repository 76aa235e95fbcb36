"""What a report needs of a run folder, what is refused, and what is computed from it."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from luna_monai.errors import LunaError
from luna_monai.reports.run_report import best_epoch, build_report, diameter_table, worst_candidates
from luna_monai.training.run_files import read_metrics, read_predictions


@pytest.fixture
def metrics(run_folder):
    return read_metrics(run_folder / "metrics.csv")


@pytest.fixture
def validation(run_folder):
    return read_predictions(run_folder / "predictions" / "val.csv")


def change(path, columns):
    """Change values of a table."""
    table = pd.read_csv(path, dtype={"seriesuid": str})
    for (row, column), value in columns.items():
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
    table.to_csv(path, index=False)


HEADER = "row,seriesuid,coordX,coordY,coordZ,class,diameter_mm,probability,loss\n"
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
    "no YAML": ("config.yaml", "a: [1", "config.yaml: not the configuration of a run"),
    "no keys": ("config.yaml", "- 1", "config.yaml: not the configuration of a run"),
    "empty config": ("config.yaml", "", "config.yaml: not the configuration of a run"),
    "no config": ("config.yaml", None, "config.yaml: not the configuration of a run .*No such file"),
    "no training predictions": ("predictions/trn.csv", None, "trn.csv: no such file"),
    "no candidates": ("predictions/val.csv", HEADER, "val.csv: no candidates"),
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
        build_report(run_folder)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_annotations(run_folder, tmp_path):
    with pytest.raises(LunaError, match=r"annotations\.csv: no such file"):
        build_report(run_folder, tmp_path)


def test_the_best_epoch_is_found_by_its_loss(metrics, validation):
    assert best_epoch(metrics, validation) == 2
    assert best_epoch(metrics, validation.assign(loss=np.nan)) is None
    assert best_epoch(metrics.assign(**{"loss/all": np.nan}), validation) is None


def test_candidates_by_diameter(validation):
    table = diameter_table(validation, 0.5).set_index("diameter")
    truth, called = validation["class"], validation["probability"] > 0.5
    assert table["candidates"].sum() == truth.sum() == 10
    assert table["found"].sum() / table["candidates"].sum() == pytest.approx(recall_score(truth, called))
    large = validation[validation["diameter_mm"] == 12]
    row = table.loc["10 to 15 mm"]
    assert row["candidates"] == len(large) == 5
    assert row["sensitivity"] == (large["probability"] > 0.5).mean()
    diameters = [0.0, 3.99, 4.0, 6.0, 9.9, 14.0, 19.0, 20.0, 55.0]
    nodules = validation.iloc[[0] * len(diameters)].assign(**{"diameter_mm": diameters, "class": True})
    assert diameter_table(nodules, 0.5)["candidates"].tolist() == [1] * 7 + [2]


def test_worst_candidates_have_the_highest_loss(validation):
    missed, alarms = worst_candidates(validation, 0.5)
    wrong = validation[validation["class"] != (validation["probability"] > 0.5)]
    for shown, of_class in ((missed, wrong[wrong["class"]]), (alarms, wrong[~wrong["class"]])):
        assert shown["row"].tolist() == of_class.sort_values("loss", ascending=False)["row"].tolist()[:12]
    # A probability of exactly the threshold calls no nodule.
    missed, alarms = worst_candidates(validation.assign(probability=0.5), 0.5)
    assert (len(missed), len(alarms)) == (10, 0)
