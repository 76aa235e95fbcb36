"""Evaluating a run or a file of weights, and what is written about it."""

import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser

from luna_monai.apps import LunaEvaluateApp, LunaFrocApp, LunaTrainingApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import Calibration, log_odds_of_probability
from luna_monai.networks import LunaModel
from luna_monai.share import bundle_dir
from luna_monai.training import evaluation_dir


@pytest.fixture(scope="module")
def run(write_dataset, tmp_path_factory):
    """Train for a short time on noise, and return the run folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    dataset_dir = write_dataset(folder / "luna", scans=2, candidates=12)
    LunaTrainingApp(
        [
            *("--dataset-dir", dataset_dir, "--cache-dir", folder / "cache", "--output-dir", folder / "run"),
            *("--epochs", 1, "--fold", 1, "samples_per_epoch=8", "precache_workers=0", "optimizer#lr=0.00001"),
            "network_def#batch_norm=true",
        ]
    ).main()
    return folder / "run"


def test_a_run_with_its_own_configuration(run, capsys):
    assert LunaEvaluateApp([run]).main() == 0
    lines = capsys.readouterr().out
    assert " val_pos " in lines
    assert "E1 " not in lines  # an evaluation has no epochs, whatever epoch the weights are of
    assert "false positives (candidates of class 0) per scan" in lines
    assert "false positives per scan, counted as in LUNA16" in lines
    results = run / "evaluation"
    expected = pd.read_csv(run / "predictions" / "val.csv")
    predictions = pd.read_csv(results / "predictions.csv")
    assert predictions["seriesuid"].unique().tolist() == ["1.2.3.1"]  # fold 1, as in training
    pd.testing.assert_frame_equal(predictions, expected, rtol=1e-5)
    content = json.loads((results / "metrics.json").read_text())
    assert (content["scans"], content["candidates"]) == (1, 12)
    assert content["weights"] == str(run / "model.pt")
    trained = pd.read_csv(run / "metrics.csv").query("split == 'val'").iloc[0]
    for name in ("roc_auc", "loss/all", "cpm", "pr/recall"):
        assert content["metrics"][name] == pytest.approx(trained[name], rel=1e-5), name
    assert not list(results.rglob("*.tmp"))
    assert len(pd.read_csv(run / "metrics.csv")) == 2  # the run itself is as it was


def test_a_candidate_table_of_another_name(run, tmp_path):
    dataset = tmp_path / "luna"
    shutil.copytree(run.parent / "luna", dataset)
    (dataset / "candidates.csv").rename(dataset / "mine.csv")
    options = ["--dataset-dir", dataset, "--cache-dir", run.parent / "cache", "--output-dir", tmp_path / "run"]
    LunaTrainingApp([*options, "--epochs", 1, "samples_per_epoch=8", "candidates_file=mine.csv"]).main()
    assert LunaEvaluateApp([tmp_path / "run"]).main() == 0
    assert (tmp_path / "run" / "evaluation" / "metrics.json").exists()


def test_each_file_of_weights_has_a_folder_of_its_own(run, tmp_path):
    (tmp_path / "model.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    first, second = evaluation_dir(run / "model.pt"), evaluation_dir(tmp_path / "model.pt")
    assert re.fullmatch(r"data-unversioned/evaluation/model-[0-9a-f]{8}", first)
    assert first != second
    config = ConfigParser.load_config_file(bundle_dir() / "configs" / "evaluate.yaml")
    assert config["output_dir"] == "$luna_monai.training.evaluation_dir(@weights)"


def test_calibration_and_thresholds(run, tmp_path):
    LunaEvaluateApp([run, "--output-dir", tmp_path / "results", "--all-scans"]).main()
    predictions = pd.read_csv(tmp_path / "results" / "predictions.csv")
    assert sorted(predictions["seriesuid"].unique()) == ["1.2.3.0", "1.2.3.1"]
    content = json.loads((tmp_path / "results" / "calibration.json").read_text())
    assert content["fitted_on"] == {"scans": 2, "candidates": 24, "nodule_candidates": 4}
    probability, is_nodule = predictions["probability"].to_numpy(), predictions["class"].to_numpy() == 1
    calibration = Calibration(**content["calibration"])
    calibrated = calibration.apply(log_odds_of_probability(probability))
    # Fitted on the same data, so the mean must be the share of nodules.
    assert calibrated.mean() == pytest.approx(4 / 24, abs=1e-3)
    points = {name: {point["wanted"]: point for point in points} for name, points in content["thresholds"].items()}
    assert list(points["sensitivity"]) == [0.8, 0.9, 0.95, 0.99]
    assert list(points["false_positives_per_scan"]) == [0.125, 0.25, 0.5, 1, 2, 4, 8]
    for wanted, point in points["false_positives_per_scan"].items():
        called = probability > point["threshold"]
        assert (called & ~is_nodule).sum() / 2 == point["false_positives_per_scan"] <= wanted
        np.testing.assert_array_equal(calibrated > point["calibrated_threshold"], called)
    for wanted, point in points["sensitivity"].items():
        assert (probability > point["threshold"])[is_nodule].mean() == point["sensitivity"] >= wanted
    for name in ("raw", "calibrated"):
        assert sum(content["reliability"][name]["count"]) == 24
    assert content["reliability"]["folds"] == 2
    assert content["reliability"]["calibrated"]["brier_score"] < content["reliability"]["raw"]["brier_score"]


def test_a_calibration_is_evaluated_on_other_scans(run, tmp_path, capsys):
    LunaEvaluateApp([run, "--output-dir", tmp_path, "--all-scans"]).main()
    LunaEvaluateApp([run, "--output-dir", tmp_path, "--fold", 0]).main()  # one scan: nothing to evaluate on
    content = json.loads((tmp_path / "calibration.json").read_text())
    assert content["fitted_on"]["scans"] == 1
    assert (content["reliability"]["calibrated"], content["reliability"]["folds"]) == (None, None)
    assert "unknown (nodules in one scan only)" in capsys.readouterr().out


def test_submission_is_luna16s(run, tmp_path):
    LunaEvaluateApp([run, "--output-dir", tmp_path]).main()
    (tmp_path / "uids.csv").write_text("1.2.3.1\n")
    LunaFrocApp(
        [
            *(tmp_path / "submission.csv", "--annotations", run.parent / "luna" / "annotations.csv"),
            *("--seriesuids", tmp_path / "uids.csv", "--json", tmp_path / "froc.json", "--bootstrap", 0),
        ]
    ).main()
    official = json.loads((tmp_path / "froc.json").read_text())["cpm"]
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["cpm"] == pytest.approx(official)


def test_weights_on_all_scans_and_metadata(run, tmp_path):
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"version": "0.1.0"}))
    LunaEvaluateApp(
        [
            *(run / "checkpoint.pt", "--all-scans", "--dataset-dir", run.parent / "luna", "--metadata", metadata),
            *("--cache-dir", run.parent / "cache", "--output-dir", tmp_path / "results"),
        ]
    ).main()
    assert pd.read_csv(tmp_path / "results" / "predictions.csv")["row"].tolist() == list(range(24))
    stored = json.loads(metadata.read_text())
    calibration = json.loads((tmp_path / "results" / "calibration.json").read_text())
    assert stored["version"] == "0.1.0"
    assert stored["operating_points"]["calibration"] == calibration["calibration"]
    assert stored["operating_points"]["thresholds"] == calibration["thresholds"]
    assert stored["operating_points"]["weights"] == "checkpoint.pt"
    digest = hashlib.sha256((run / "checkpoint.pt").read_bytes()).hexdigest()
    assert stored["operating_points"]["weights_sha256"] == digest


def test_the_book_keeps_its_threshold(run, tmp_path):
    arguments = ["--dataset-dir", run.parent / "luna", "--cache-dir", run.parent / "cache", "--output-dir", tmp_path]
    (tmp_path / "calibration.json").write_text("of an earlier evaluation")
    LunaEvaluateApp([run / "model.pt", "--config", "book_ch11", *arguments]).main()
    assert pd.read_csv(tmp_path / "predictions.csv")["row"].tolist() == [0, 10, 20]
    assert not (tmp_path / "calibration.json").exists()
    assert "cpm" not in json.loads((tmp_path / "metrics.json").read_text())["metrics"]


def test_one_class_has_no_calibration(run, write_dataset, tmp_path, capsys):
    dataset_dir = write_dataset(tmp_path / "luna", scans=2, candidates=8)
    table = pd.read_csv(dataset_dir / "candidates.csv").assign(**{"class": 0})
    table.to_csv(dataset_dir / "candidates.csv", index=False)
    arguments = ["--dataset-dir", dataset_dir, "--cache-dir", "null", "--output-dir", tmp_path / "results"]
    LunaEvaluateApp([run, *arguments]).main()
    assert "No calibration and thresholds: a calibration needs candidates of both classes" in capsys.readouterr().out
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["metrics"]["roc_auc"] is None
    assert not list((tmp_path / "results").glob("calibration*"))


def test_bundle_command(run, tmp_path, repository):
    """The zoo's way: overlays, and ``run`` as the name of what is run."""
    from monai.bundle import ConfigWorkflow

    folder = repository / "bundle" / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(folder / "train.yaml"), str(folder / "evaluate.yaml")],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        run_id="run",
        workflow_type="train",
        weights=str(run / "model.pt"),
        dataset_dir=str(run.parent / "luna"),
        cache_dir=None,
        fold=1,
        output_dir=str(tmp_path / "results"),
    )
    workflow.initialize()
    workflow.run()
    expected = pd.read_csv(run / "predictions" / "val.csv")
    actual = pd.read_csv(tmp_path / "results" / "predictions.csv")
    pd.testing.assert_frame_equal(actual, expected, rtol=1e-5)


def test_only_the_evaluated_scans_are_cropped(run, write_dataset, tmp_path):
    dataset_dir = write_dataset(tmp_path / "luna", scans=2, candidates=12)
    options = "--dataset-dir", dataset_dir, "--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "out"
    assert LunaEvaluateApp([run / "model.pt", *options, "--fold", 1, "precache_workers=0"]).main() == 0
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 1


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(run, tmp_path, capsys):
    (tmp_path / "out").write_text("a file")
    assert run_app(LunaEvaluateApp, [run, "--output-dir", tmp_path / "out"]) == 1
    output = capsys.readouterr()
    assert f"{tmp_path / 'out' / 'metrics.json'}: cannot write to the folder {tmp_path / 'out'}" in output.err
    assert "val_pos" not in output.out


def test_mistakes_get_one_clear_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "linear.pt")
    (tmp_path / "metadata.json").write_text("{")
    (tmp_path / "good.json").write_text("{}")
    here = ["--dataset-dir", run.parent / "luna", "--cache-dir", "null", "--output-dir", tmp_path / "results"]
    for arguments, message in (
        ([tmp_path / "empty"], f"{tmp_path}/empty/config.yaml: No such file or directory"),
        # Whatever else is wrong: the default dataset_dir is not there.
        ([tmp_path / "nowhere"], f"{tmp_path}/nowhere: no such file or folder"),
        ([tmp_path / "nowhere.pt", *here], f"{tmp_path}/nowhere.pt: no such file"),
        ([tmp_path / "linear.pt", *here], f"{tmp_path}/linear.pt: weights of another network"),
        ([run, "--fold", 7], "fold 7: no scan with candidates"),
        ([run, "--metadata", tmp_path / "metadata.json"], f"{tmp_path}/metadata.json: not a readable JSON"),
        (
            [run, *here, "--metadata", tmp_path / "good.json", "flips=true"],
            "flips: --metadata stores the thresholds of",
        ),
        ([run, "wieghts=1"], "'wieghts' is not a key of the configuration; did you mean 'weights'"),
    ):
        assert run_app(LunaEvaluateApp, arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"luna-monai evaluate: error: {message}")
        assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_finetune(run, tmp_path):
    """Training starts from the given weights: with a learning rate of zero it ends with them."""
    arguments = [
        *(
            "--dataset-dir",
            run.parent / "luna",
            "--cache-dir",
            run.parent / "cache",
            "--output-dir",
            tmp_path / "tuned",
        ),
        *("--epochs", 1, "samples_per_epoch=8", "optimizer#lr=0.0", "--finetune", run / "model.pt"),
    ]
    LunaTrainingApp(arguments).main()
    start = torch.load(run / "model.pt", weights_only=True)
    end = torch.load(tmp_path / "tuned" / "model.pt", weights_only=True)
    parameters = [name for name, _ in LunaModel().named_parameters()]
    assert all(torch.equal(start[name], end[name]) for name in parameters)
    assert end["tail_batchnorm.num_batches_tracked"] == start["tail_batchnorm.num_batches_tracked"] + 1
    with pytest.raises(LunaError, match=r"nowhere\.pt: no such file"):
        LunaTrainingApp([*arguments[:-1], tmp_path / "nowhere.pt"]).main()
