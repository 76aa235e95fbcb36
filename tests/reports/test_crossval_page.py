"""Folds put together: complete, in part, with NaN, and with scans that have no candidate."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from luna_monai.data import DatasetScans, folds_of, read_candidates
from luna_monai.errors import LunaError
from luna_monai.reports.crossval import write_results


@pytest.fixture
def folds(make_dataset, tmp_path):
    """A dataset of three subsets, the candidate table, and the predictions of three folds on it."""
    dataset = make_dataset(scans=3, candidates=8)
    table = read_candidates(dataset)
    generator = np.random.default_rng(0)
    table_with = table.assign(probability=generator.random(len(table)), loss=generator.random(len(table)))
    for fold in range(3):
        part = table_with[table_with["seriesuid"] == f"1.2.3.{fold}"].rename_axis("row").reset_index()
        path = tmp_path / "cv" / f"fold{fold}" / "predictions" / "val.csv"
        path.parent.mkdir(parents=True)
        part.to_csv(path, index=False)
    return tmp_path / "cv", table, dataset


def write(folds, done, bootstrap=0):
    folder, candidates, dataset = folds
    scans = DatasetScans(dataset)
    write_results(folder, candidates, folds_of(candidates, scans), scans, done, bootstrap)


def test_all_folds(folds, caplog):
    folder, candidates, _ = folds
    caplog.set_level(logging.INFO)
    write(folds, [0, 1, 2], 20)
    content = json.loads((folder / "crossval.json").read_text())
    table = pd.read_csv(folder / "folds.csv")
    assert table["fold"].tolist() == ["0", "1", "2", "mean", "std", "pooled"]
    assert table["scans"].dropna().tolist() == [1, 1, 1, 3]
    assert content["scans"] == 3
    assert f"CPM {content['cpm']:.4f} (95% interval" in caplog.text
    assert len(pd.read_csv(folder / "submission.csv")) == len(candidates)
    page = (folder / "crossval.html").read_text()
    assert "not trained yet" not in page


def test_some_folds_have_a_page(folds):
    folder, _, _ = folds
    write(folds, [0, 2])
    assert "Folds that are not trained yet: 1." in (folder / "crossval.html").read_text()
    assert pd.read_csv(folder / "folds.csv")["fold"].tolist() == ["0", "2", "mean", "std", "pooled"]
    assert len(pd.read_csv(folder / "submission.csv")) == 16
    path = folder / "fold2" / "predictions" / "val.csv"
    table = pd.read_csv(path)
    table.assign(coordZ=table["coordZ"] - 1).to_csv(path, index=False)
    with pytest.raises(LunaError, match=r"other candidates \(16 predictions for 16 candidates\)"):
        write(folds, [0, 2])
    table.iloc[1:].to_csv(path, index=False)
    with pytest.raises(LunaError, match=r"other candidates \(15 predictions for 16 candidates\)"):
        write(folds, [0, 2])


def test_scans_without_candidates_count_in_each_fold_as_in_all(folds):
    folder, _, dataset = folds
    for suffix in (".mhd", ".raw"):  # a second scan in subset 1, which no candidate is in
        (dataset / "subset1" / f"9.9{suffix}").write_bytes((dataset / "subset1" / f"1.2.3.1{suffix}").read_bytes())
    write(folds, [0, 1, 2])
    assert pd.read_csv(folder / "folds.csv", index_col="fold")["scans"].dropna().tolist() == [1, 2, 1, 4]


def test_a_diverged_fold_is_named(folds):
    folder, _, _ = folds
    path = folder / "fold1" / "predictions" / "val.csv"
    pd.read_csv(path).assign(probability=np.nan).to_csv(path, index=False)
    with pytest.raises(LunaError, match=r"fold1/predictions/val\.csv, line 2: 'probability' must be a number"):
        write(folds, [0, 1, 2])
