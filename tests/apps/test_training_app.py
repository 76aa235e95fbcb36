"""The application has the book's options and ours, and answers mistakes with one clear line."""

import re
import shutil

import pandas as pd
import pytest
import yaml

from luna_monai.apps import LunaEvaluateApp, LunaTrainingApp
from luna_monai.apps.cli import main, run_app
from luna_monai.errors import LunaError


@pytest.fixture
def arguments(make_dataset, tmp_path):
    return [
        *("--dataset-dir", make_dataset(scans=2, candidates=12), "--cache-dir", tmp_path / "cache"),
        *("--output-dir", tmp_path / "run", "--batch-size", 8, "--num-workers", 0),
    ]


def test_book_options(arguments, tmp_path):
    app = LunaTrainingApp([*arguments, "--epochs=1", "--tb-prefix=p2ch11", "für-mich", "optimizer#lr=0.5", "fold=1"])
    assert app.main() == 0
    assert (tmp_path / "run" / "config.yaml").read_bytes().isascii()  # MONAI reads it in the encoding of the system
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["batch_size"], config["max_epochs"], config["fold"]) == (8, 1, 1)
    assert config["comment"] == "für-mich"
    assert config["optimizer"]["lr"] == 0.5
    names = sorted(path.name for path in (tmp_path / "run" / "runs" / "p2ch11").iterdir())
    assert [name[20:] for name in names] == ["trn_cls-für-mich", "val_cls-für-mich"]


def test_default_fold_is_the_first_that_has_scans(make_dataset, tmp_path, capfd):
    """A folder of some subsets, as most people download, needs no option; the run records the fold that was chosen."""
    folder = make_dataset(scans=4, candidates=12)
    for subset in (0, 2):
        shutil.rmtree(folder / f"subset{subset}")
    arguments = ["--dataset-dir", folder, "--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "run"]
    assert LunaTrainingApp([*arguments, "--epochs", 1]).main() == 0
    assert "Validation on subset 1\n" in capfd.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["fold"] == 1
    predictions = pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")
    assert predictions["seriesuid"].unique().tolist() == ["1.2.3.1"]
    LunaTrainingApp([*arguments, "--epochs", 2, "--resume", "--fold", 1]).main()
    # Data that comes later does not turn what was trained on into validation data, nor the other way round.
    shutil.copytree(make_dataset(scans=1, candidates=12, name="more") / "subset0", folder / "subset0")
    assert LunaEvaluateApp([tmp_path / "run"]).main() == 0
    evaluated = pd.read_csv(tmp_path / "run" / "evaluation" / "predictions.csv")
    assert evaluated["seriesuid"].unique().tolist() == ["1.2.3.1"]
    with pytest.raises(LunaError, match=r"fold 2: no scan with candidates in .*; folds with scans: 0, 1, 3"):
        LunaTrainingApp([*arguments, "--fold", 2]).main()


def test_experiment_by_name_and_null(arguments, tmp_path):
    arguments[arguments.index("--cache-dir") + 1] = "null"
    assert LunaTrainingApp([*arguments, "--config", "book_ch11"]).main() == 0
    assert not (tmp_path / "cache").exists()
    assert pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")["row"].tolist() == [0, 10, 20]
    assert LunaTrainingApp([*arguments, "cache_dir=null", "--epochs", 1]).main() == 0


def test_resume(arguments, tmp_path):
    LunaTrainingApp([*arguments, "--epochs", 1]).main()
    LunaTrainingApp([*arguments, "--epochs", 2, "--resume"]).main()
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"].tolist() == [1, 1, 2, 2]
    # A checkpoint brings back the optimizer and its schedule; what says otherwise must not be ignored.
    with pytest.raises(LunaError, match=r"cannot resume: optimizer#lr was 0\.001, is now 0\.01; "):
        LunaTrainingApp([*arguments, "--epochs", 3, "--resume", "optimizer#lr=0.01"]).main()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["optimizer"]["lr"] == 0.001


def test_resume_of_a_schedule_with_an_end(arguments):
    short = ["--config", "synthetic", "samples_per_epoch=8", "val_interval=1"]
    LunaTrainingApp([*arguments, *short, "--epochs", 1]).main()
    with pytest.raises(LunaError, match="cannot resume: schedule#total_steps was 1, is now 2; "):
        LunaTrainingApp([*arguments, *short, "--epochs", 2, "--resume"]).main()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["epochs=3"], "'epochs' is not a key of the configuration; did you mean"),
        (
            ["optimizer#learning_rate=3"],
            "optimizer: torch.optim.Adam: TypeError: .* unexpected keyword argument 'learning_rate'",
        ),
        (["mine", "again"], "more than one comment: 'mine', 'again'"),
        (["fold=[1"], "'fold=\\[1': the value is not valid YAML"),
        (
            ["--config", "nowhere.yaml"],
            "nowhere.yaml: no such file or experiment; the experiments are book_ch11, demo",
        ),
        (["fold=5"], "fold 5: no scan with candidates"),
        (["train#sampler#ratio=-1"], "train#sampler#ratio: -1 is less than or equal to the minimum of 0"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, capsys, tmp_path, wrong, message):
    with pytest.raises(LunaError, match=message):
        LunaTrainingApp([*arguments, *wrong]).main()
    assert run_app(LunaTrainingApp, [*arguments, *wrong]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.match(f"luna-monai train: error: .*(?:{message})", error)
    assert not (tmp_path / "run").exists()


def test_missing_dataset_is_one_line(tmp_path, capsys):
    assert main(["train", "--dataset-dir", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere: no such file or folder" in error


def test_error_class_is_what_a_notebook_sees(tmp_path):
    with pytest.raises(LunaError, match="nowhere: no such file or folder"):
        LunaTrainingApp(["--dataset-dir", tmp_path / "nowhere", "--cache-dir", tmp_path / "cache"]).main()
