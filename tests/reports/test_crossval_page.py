"""Folds put together: complete, in part, and with scans that have no candidate."""

import json
import logging

import numpy as np
import pandas as pd
import pytest

from luna_monai.data import DatasetScans, read_candidates
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


def test_all_folds(folds, caplog):
    folder, candidates, dataset = folds
    caplog.set_level(logging.INFO)
    write_results(folder, [0, 1, 2], candidates, DatasetScans(dataset), 20)
    content = json.loads((folder / "crossval.json").read_text())
    assert [row["fold"] for row in content["folds"]] == [0, 1, 2, "mean", "std", "pooled"]
    assert [row["scans"] for row in content["folds"]] == [1, 1, 1, None, None, 3]
    assert content["froc"]["scans"] == 3
    assert f"CPM {content['froc']['cpm']:.4f} (95% interval" in caplog.text
    assert len(pd.read_csv(folder / "submission.csv")) == len(candidates)
    page = (folder / "crossval.html").read_text()
    assert "not trained yet" not in page


def test_some_folds_have_a_page(folds):
    folder, candidates, dataset = folds
    write_results(folder, [0, 2], candidates, DatasetScans(dataset), 0, missing=[1])
    assert "Folds that are not trained yet: 1." in (folder / "crossval.html").read_text()
    assert pd.read_csv(folder / "folds.csv")["fold"].tolist() == ["0", "2", "mean", "std", "pooled"]
    assert not (folder / "submission.csv").exists()
    with pytest.raises(LunaError, match=r"other candidates \(16 predictions for 24 candidates\)"):
        write_results(folder, [0, 2], candidates, DatasetScans(dataset), 0)


def test_scans_without_candidates_count_in_each_fold_as_in_all(folds):
    folder, candidates, dataset = folds
    for suffix in (".mhd", ".raw"):  # a second scan in subset 1, which no candidate is in
        (dataset / "subset1" / f"9.9{suffix}").write_bytes((dataset / "subset1" / f"1.2.3.1{suffix}").read_bytes())
    write_results(folder, [0, 1, 2], candidates, DatasetScans(dataset), 0)
    assert pd.read_csv(folder / "folds.csv", index_col="fold")["scans"].dropna().tolist() == [1, 2, 1, 4]
