"""What a run records in MLflow."""

import math
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml

from luna_monai.apps import LunaTrainingApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError

mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory, sqlite_uri):
    """Return the file of an empty store. MLflow needs seconds to create it."""
    path = tmp_path_factory.mktemp("store") / "mlruns.db"
    mlflow.MlflowClient(sqlite_uri(path))
    return path


@pytest.fixture
def store(empty_store, tmp_path):
    """Copy the empty store to the place where the run expects it."""
    (tmp_path / "größe 1").mkdir()
    shutil.copy(empty_store, tmp_path / "größe 1" / "mlruns.db")


@pytest.fixture
def train(make_dataset, tmp_path):
    """Return a function that trains with tracking in a folder with special characters, and returns the exit status."""
    data = ["--dataset-dir", make_dataset(scans=2), "--cache-dir", tmp_path / "cache", "precache_workers=0"]
    options = ["--batch-size", "8", "samples_per_epoch=8", "--tracking", "mlflow", "--fold", "1"]

    def run(*arguments):
        return run_app(LunaTrainingApp, [*data, *options, "--output-dir", tmp_path / "größe 1", *arguments])

    return run


@pytest.fixture
def open_store(tmp_path, sqlite_uri):
    """Return a function that opens the store of the run, and returns a client and the runs in it."""

    def open_it():
        client = mlflow.MlflowClient(sqlite_uri(tmp_path / "größe 1" / "mlruns.db"))
        return client, client.search_runs([client.get_experiment_by_name("luna_monai").experiment_id])

    return open_it


def test_configuration_metrics_and_weights(train, tmp_path, open_store, capfd):
    assert train("--epochs", "2", "my-comment") == 0
    captured = capfd.readouterr()
    assert "alembic" not in captured.out + captured.err
    folder = tmp_path / "größe 1"
    assert (folder / "mlruns.db").is_file()
    assert (folder / "mlruns").is_dir()  # with the files
    client, (run,) = open_store()
    assert run.info.status == "FINISHED"
    assert run.info.run_name.endswith(" my-comment")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    params = run.data.params
    assert params["optimizer/lr"] == str(config["optimizer"]["lr"])
    assert params["train/augmentation/noise"] == str(config["train"]["augmentation"]["noise"])
    assert params["fold"] == "1"
    assert len(params["cache_fingerprint"]) >= 16
    table = pd.read_csv(folder / "metrics.csv")
    for split in ("trn", "val"):
        history = client.get_metric_history(run.info.run_id, f"{split}/loss/all")
        assert [one.step for one in history] == [1, 2]
        assert [one.value for one in history] == pytest.approx(table[table["split"] == split]["loss/all"].tolist())
    assert all(math.isfinite(value) for value in run.data.metrics.values())
    artifacts = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "metrics.csv", "model.pt"}
    recorded = torch.load(client.download_artifacts(run.info.run_id, "model.pt", str(tmp_path)), weights_only=True)
    kept = torch.load(folder / "model.pt", weights_only=True)
    assert all(torch.equal(recorded[name], value) for name, value in kept.items())


@pytest.mark.usefixtures("store")
def test_only_a_resumed_run_continues_its_mlflow_run(train, tmp_path, open_store, sqlite_uri):
    uri = sqlite_uri(tmp_path / "größe 1" / "mlruns.db")
    train("--epochs", "1")
    train("--epochs", "1", "--output-dir", tmp_path / "other", f"tracking_uri={uri}")
    train("--epochs", "2", "--resume")
    train("--epochs", "1")  # not resumed: another run
    client, runs = open_store()
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    histories = [client.get_metric_history(run.info.run_id, "trn/loss/all") for run in runs]
    epochs = {
        (run.data.params["output_dir"], *(one.step for one in history))
        for run, history in zip(runs, histories, strict=True)
    }
    first, other = str(tmp_path / "größe 1"), str(tmp_path / "other")
    assert epochs == {(first, 1, 2), (other, 1), (first, 1)}


@pytest.mark.usefixtures("store")
def test_a_failed_run_is_marked(train, open_store, monkeypatch, capsys):
    def fail(*_):
        raise LunaError("scan.mhd: gone")

    monkeypatch.setattr("luna_monai.data.datasets.CandidateDataset.read", fail)
    assert train("--epochs", "1") == 1
    assert "scan.mhd: gone" in capsys.readouterr().err
    assert [run.info.status for run in open_store()[1]] == ["FAILED"]


@pytest.mark.usefixtures("store")
def test_an_unreachable_store_does_not_stop_the_run(train, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", fail)
    assert train("--epochs", "1") == 0
    assert "MLflow cannot record in sqlite:" in capsys.readouterr().out
    assert (tmp_path / "größe 1" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tracking_uri=./mlruns"], "tracking_uri ./mlruns: MLflow cannot use it"),
        (["tracking_uri=nonsense://host"], "tracking_uri nonsense://host: MLflow cannot use it"),
    ],
)
def test_bad_stores(train, tmp_path, capsys, arguments, message):
    assert train("--epochs", "1", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "größe 1" / "model.pt").exists()


def test_not_installed(train, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert train("--epochs", "1") == 1
    assert "mlflow is required but not installed: pip install 'luna-monai[mlflow]'" in capsys.readouterr().err


def test_no_usage_statistics_are_sent():
    code = """
import socket, time
addresses = []
socket.getaddrinfo = lambda host, *rest, **more: addresses.append(host) or []
socket.create_connection = lambda address, *rest, **more: addresses.append(address)
from luna_monai.training.tracking import _disable_telemetry
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is not None
_disable_telemetry()
assert get_telemetry_client() is None
time.sleep(0.5)
print(addresses)
"""
    # MLflow sends nothing from tests and from CI anyway, and tests before this one have asked it not to.
    silent = ("CI", "PYTEST", "GIT", "MLFLOW")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(silent)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")
