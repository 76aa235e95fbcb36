"""A cross-validation: fresh weights for each fold, folds one by one or side by side, and results of all together."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from luna_monai.apps import LunaCrossvalApp, LunaFrocApp, LunaTrainingApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError

COORDINATES = ["coordX", "coordY", "coordZ"]


@pytest.fixture(scope="module")
def dataset_dir(write_dataset, tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("crossval") / "luna", scans=3, candidates=8)


@pytest.fixture
def arguments(dataset_dir, tmp_path):
    return [
        *("--output-dir", tmp_path / "cv", "--dataset-dir", dataset_dir, "--cache-dir", tmp_path / "cache"),
        *("--epochs", 1, "precache_workers=0", "samples_per_epoch=8", "optimizer#lr=0.00001"),
    ]


def test_all_folds(arguments, dataset_dir, tmp_path):
    assert LunaCrossvalApp(arguments).main() == 0
    folder = tmp_path / "cv"

    # Each fold starts from the same fresh weights, which one batch of a low learning rate hardly changes.
    trained = [torch.load(folder / f"fold{fold}" / "model.pt", weights_only=True) for fold in range(3)]
    assert {int(state["tail_batchnorm.num_batches_tracked"]) for state in trained} == {1}
    first, *others = (state["block1.conv1.weight"] for state in trained)
    for other in others:
        assert not torch.equal(other, first)
        torch.testing.assert_close(other, first, rtol=0, atol=1e-4)

    # Each candidate is predicted once, by the model that has not seen its scan.
    predictions = pd.read_csv(folder / "predictions.csv")
    assert predictions["row"].tolist() == list(range(24))
    assert (predictions["seriesuid"] == "1.2.3." + predictions["fold"].astype(str)).all()
    for fold in range(3):
        own = pd.read_csv(folder / f"fold{fold}" / "predictions" / "val.csv")
        part = predictions[predictions["fold"] == fold].drop(columns="fold").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, own)

    submission = pd.read_csv(folder / "submission.csv")
    assert list(submission.columns) == ["seriesuid", *COORDINATES, "probability"]
    uids = tmp_path / "seriesuids.csv"
    uids.write_text("1.2.3.0\n1.2.3.1\n1.2.3.2\n")
    LunaFrocApp(
        [
            *(folder / "submission.csv", "--annotations", dataset_dir / "annotations.csv", "--seriesuids", uids),
            *("--json", tmp_path / "froc.json"),
        ]
    ).main()
    official = json.loads((tmp_path / "froc.json").read_text())
    content = json.loads((folder / "crossval.json").read_text())
    assert content["cpm"] == pytest.approx(official["cpm"], abs=1e-12)
    assert content["bootstrap"] == official["bootstrap"]

    table = pd.read_csv(folder / "folds.csv", index_col="fold")
    assert table.index.tolist() == ["0", "1", "2", "mean", "std", "pooled"]
    assert table["scans"].tolist()[:3] == [1, 1, 1]
    assert table.loc["pooled", ["scans", "candidates"]].tolist() == [3, 24]
    for fold in range(3):
        metrics = pd.read_csv(folder / f"fold{fold}" / "metrics.csv").query("split == 'val'").iloc[0]
        for name in ("roc_auc", "average_precision", "cpm", "sensitivity/8"):
            assert table.loc[str(fold), name] == pytest.approx(metrics[name], abs=1e-6), name
    of_folds = table.loc[["0", "1", "2"], "cpm"]
    assert of_folds.nunique() > 1
    assert table.loc["mean", "cpm"] == pytest.approx(of_folds.mean())
    assert table.loc["std", "cpm"] == pytest.approx(np.std(of_folds, ddof=1), abs=1e-12)
    assert table.loc["pooled", "cpm"] == pytest.approx(official["cpm"])
    page = (folder / "crossval.html").read_text()
    assert page.count("<tr>") == 1 + 6, "a header and the rows of folds.csv"
    assert f"CPM {official['cpm']:.4f}" in page


def test_fold_by_fold(arguments, tmp_path, capsys):
    folder = tmp_path / "cv"
    LunaCrossvalApp([*arguments, "--folds", "2"]).main()
    assert sorted(path.name for path in folder.glob("fold?")) == ["fold2"]
    before = (folder / "fold2" / "model.pt").stat().st_mtime_ns
    assert "Folds that are not trained yet: 0, 1." in capsys.readouterr().out

    LunaCrossvalApp(arguments).main()
    assert "Fold 2: already trained" in capsys.readouterr().out
    assert (folder / "fold2" / "model.pt").stat().st_mtime_ns == before
    assert len(pd.read_csv(folder / "submission.csv")) == 24


def test_an_interrupted_fold_goes_on(arguments, tmp_path, capsys):
    fold = ["--output-dir", tmp_path / "cv" / "fold1", *arguments[2:], "fold=1"]
    LunaTrainingApp(fold).main()
    with pytest.raises(LunaError, match="fold1 was trained with other settings: batch_size was 32, is now 16"):
        LunaCrossvalApp([*arguments, "--folds", "1", "--batch-size", 16]).main()
    LunaCrossvalApp([*arguments, "--folds", "1"]).main()
    assert "Fold 1: resuming" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "cv" / "fold1" / "metrics.csv")["epoch"].tolist() == [1, 1]
    assert not list((tmp_path / "cv" / "fold1").glob("previous-*"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--folds", "0,7"], "fold 7 has no scans with candidates; folds: 0, 1, 2"),
        (["--folds", "all"], "argument --folds: invalid numbers value: 'all'"),
        (["fold=1"], "fold=1: crossval sets this key for each fold"),
        (["comment=mine"], "comment=mine: crossval sets this key for each fold"),
        (["finetune=model.pt"], "finetune=model.pt: crossval sets this key for each fold"),
        (["--config", "book_ch11"], "has no effect, because nothing in this configuration refers to it"),
        (["--bootstrap", "-1"], "bootstrap samples must be between 0 and 100,000, found -1"),
        (["epoch=3"], "'epoch' is not a key of the configuration"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, capsys, tmp_path, wrong, message):
    assert run_app(LunaCrossvalApp, [*arguments, *wrong]) == 1
    error = capsys.readouterr().err
    assert error.startswith("luna-monai crossval: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cv").exists()


def test_a_diverged_fold_is_named_at_once(arguments, tmp_path, capsys):
    arguments[arguments.index("optimizer#lr=0.00001")] = "optimizer#lr=1e30"
    for _ in range(2):  # the second call resumes the fold, which is not complete
        assert run_app(LunaCrossvalApp, [*arguments, "book_metrics_only=true"]) == 1
        error = capsys.readouterr().err
        assert "fold 0: the training diverged, so there are no validation predictions; use other settings" in error
        assert sorted(path.name for path in (tmp_path / "cv").iterdir()) == ["fold0"]
        assert not (tmp_path / "cv" / "fold0" / "fold.json").exists()


def test_folds_must_be_trained_alike(arguments, tmp_path):
    LunaCrossvalApp([*arguments, "--folds", "0"]).main()
    with pytest.raises(LunaError, match="fold0 was trained with other settings: batch_size was 32, is now 4; "):
        LunaCrossvalApp([*arguments, "seed=1", "--batch-size", 4]).main()
    assert not (tmp_path / "cv" / "fold1").exists()


def test_one_subset_is_not_enough(write_dataset, arguments, tmp_path):
    arguments[arguments.index("--dataset-dir") + 1] = write_dataset(tmp_path / "luna", scans=1, candidates=4)
    with pytest.raises(LunaError, match="has scans in subset0 only; add another subset"):
        LunaCrossvalApp(arguments).main()
