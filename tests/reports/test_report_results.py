"""The numbers of a report, counted again in another way."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from luna_monai.apps.froc import LunaFrocApp
from luna_monai.reports.results import (
    best_epoch,
    candidates_by_diameter,
    nearest_finding,
    nodules_by_diameter,
    results_by_subset,
    run_froc,
    worst_candidates,
)
from luna_monai.reports.run import read_run


@pytest.fixture
def run(run_folder):
    return read_run(run_folder)


def test_the_kept_epoch_is_found_by_its_loss(run):
    assert best_epoch(run.metrics, run.validation) == 2
    assert best_epoch(run.metrics, run.validation.assign(loss=0.0)) is None
    assert best_epoch(run.metrics.assign(**{"loss/all": np.nan}), run.validation) is None
    assert best_epoch(run.metrics.drop(columns="loss/all"), run.validation) is None


def test_froc_is_that_of_the_command(run, run_folder, dataset, tmp_path):
    submission, uids, out = tmp_path / "submission.csv", tmp_path / "uids.csv", tmp_path / "out.json"
    columns = ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    pd.read_csv(run_folder / "predictions" / "val.csv", dtype=str)[columns].to_csv(submission, index=False)
    uids.write_text("1.1\n")
    files = [f"--annotations={dataset}/annotations.csv", f"--excluded={dataset}/annotations_excluded.csv"]
    LunaFrocApp([submission, *files, f"--seriesuids={uids}", f"--json={out}", "--bootstrap=0"]).main()
    expected = json.loads(out.read_text())
    result = run_froc(run, bootstrap=0, seed=0).to_dict()
    result["curve"]["threshold"][0] = None  # infinity in JSON
    assert 0 < expected["cpm"] < 1
    assert {key: expected[key] for key in result} == result


def test_diameter_groups(run):
    diameters = [0.0, 3.99, 4.0, 6.0, 9.9, 14.0, 19.0, 20.0, 55.0]
    nodules = run.validation.iloc[[0] * len(diameters)].assign(**{"diameter_mm": diameters, "class": True})
    table = candidates_by_diameter(nodules, 0.5)
    names = ["no annotation", "below 4 mm", "4 to 6 mm", "6 to 8 mm", "8 to 10 mm", "10 to 15 mm", "15 to 20 mm"]
    assert table["group"].tolist() == [(name, number) for number, name in enumerate([*names, "20 mm and more"])]
    assert table["candidates"].tolist() == [1] * 7 + [2]


def test_candidates_by_diameter_add_up(run):
    table = candidates_by_diameter(run.validation, 0.5)
    truth, called = run.validation["class"], run.validation["probability"] > 0.5
    assert table["candidates"].sum() == truth.sum() == 10
    assert table["found"].sum() / table["candidates"].sum() == pytest.approx(recall_score(truth, called))
    large = run.validation[run.validation["diameter_mm"] == 12]
    row = table.loc["10 to 15 mm"]
    assert row["candidates"] == len(large) == 5
    assert row["found"] == (large["probability"] > 0.5).sum()
    assert row["probability"] == large["probability"].median()
    assert row["loss"] == pytest.approx(large["loss"].mean())
    for (lower, upper), sensitivity in zip(table["interval"], table["sensitivity"], strict=True):
        assert lower <= sensitivity <= upper


def test_nodules_by_diameter_count_annotations(run):
    froc = run_froc(run, bootstrap=0, seed=0)
    best = run.validation[run.validation["class"]].groupby("diameter_mm")["probability"].max()
    threshold = best.mean()
    table = nodules_by_diameter(froc, threshold)
    assert [number for _, number in table["group"]] == [2, 5]
    assert table["nodules"].tolist() == table["with_candidate"].tolist() == [1, 1]
    assert table["found"].tolist() == (best > threshold).astype(int).tolist()
    assert table[["at_1", "at_4"]].sum().tolist() == [
        int(froc.sensitivity[3] * 2 + 1e-9),
        int(froc.sensitivity[5] * 2 + 1e-9),
    ]


def test_results_by_subset(run):
    table = results_by_subset(run, 0.5).set_index(["part", "subset"])
    assert table.index.tolist() == [("validation", 0), ("training", 3)]
    for key, predictions in ((("validation", 0), run.validation), (("training", 3), run.training)):
        row = table.loc[key]
        assert row["roc_auc"] == pytest.approx(roc_auc_score(predictions["class"], predictions["probability"]))
        assert (row["scans"], row["candidates"]) == (1, len(predictions))


def test_worst_candidates_are_the_surest_mistakes(run):
    missed, alarms = worst_candidates(run.validation, 0.5, 3)
    wrong = run.validation[run.validation["class"] != (run.validation["probability"] > 0.5)]
    for shown, of_class in ((missed, wrong[wrong["class"]]), (alarms, wrong[~wrong["class"]])):
        assert len(shown) == min(3, len(of_class))
        expected = of_class.sort_values("loss", ascending=False).head(3)
        assert shown["row"].tolist() == expected["row"].tolist()
    # A probability of exactly the threshold calls no nodule.
    exactly = run.validation.assign(probability=0.5)
    missed, alarms = worst_candidates(exactly, 0.5, 1000)
    assert (len(missed), len(alarms)) == (10, 0)


def test_nearest_finding(run):
    distance, finding = nearest_finding(np.array([10.0, -5.0, 16.0]), run.annotations)
    assert (distance, finding["diameter_mm"]) == (4.0, 12.0)
    assert nearest_finding(np.zeros(3), None) is None
    assert nearest_finding(np.zeros(3), run.annotations.iloc[:0]) is None
