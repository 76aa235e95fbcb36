"""A run that was killed and resumed is, bit for bit, the run that was never interrupted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from luna_monai.training import has_bfloat16

TEXT_FILES = ("metrics.csv", "predictions/val.csv", "predictions/trn.csv")


@pytest.fixture(scope="module")
def runs(write_dataset, tmp_path_factory):
    """Train 4 epochs in one go, and in several ways with a stop after 2; balance and augmentation are on."""
    folder = tmp_path_factory.mktemp("runs")
    common = {
        "dataset_dir": str(write_dataset(folder / "luna", scans=2, candidates=8)),
        "cache_dir": str(folder / "cache"),
        "batch_size": 4,
        "samples_per_epoch": 8,
        "network_def#conv_channels": 2,
        "network_def#batch_norm": True,
        "precache_workers": 0,
        "device": "$torch.device('cpu')",
        "precision": "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32",
    }

    def job(name, kill_in_epoch=None, **overrides):
        return {
            "overrides": common | {"output_dir": str(folder / name), "max_epochs": 4} | overrides,
            "kill_in_epoch": kill_in_epoch,
        }

    jobs = [
        job("whole"),
        job("killed", kill_in_epoch=3),
        job("killed", resume=True),
        job("killed-with-workers", kill_in_epoch=3, num_workers=2),
        job("killed-with-workers", num_workers=2, resume=True),
        job("longer", max_epochs=2),
        job("longer", resume=True),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    log = folder / "log.txt"
    with log.open("w") as output:
        # Not a pipe: the loader's processes of a killed run keep it open until they notice.
        code = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("training_jobs.py")), str(folder / "jobs.json")],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
    assert code == 0, log.read_text()[-3000:]
    return folder


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.mark.parametrize("name", ["killed", "killed-with-workers", "longer"])
def test_results_equal_those_of_the_uninterrupted_run(runs, name):
    whole, resumed = runs / "whole", runs / name
    for file in TEXT_FILES:
        assert (resumed / file).read_text() == (whole / file).read_text(), file
    expected = torch.load(whole / "model.pt", weights_only=True)
    actual = torch.load(resumed / "model.pt", weights_only=True)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert pd.read_csv(resumed / "metrics.csv")["epoch"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("name", ["killed", "killed-with-workers", "longer"])
def test_files_equal_those_of_the_uninterrupted_run(runs, name):
    expected, actual = checkpoint(runs / "whole"), checkpoint(runs / name)
    assert (actual["epoch"], actual["iteration"]) == (expected["epoch"], expected["iteration"]) == (4, 8)
    state, wanted = actual["state"], expected["state"]
    assert all(torch.equal(state["network"][key], wanted["network"][key]) for key in wanted["network"])
    for number, moments in wanted["optimizer"]["state"].items():
        assert all(torch.equal(state["optimizer"]["state"][number][key], value) for key, value in moments.items())
    assert state["optimizer"]["param_groups"] == wanted["optimizer"]["param_groups"]
    assert state["lr_scheduler"] == wanted["lr_scheduler"]
    assert state["lr_scheduler"]["_last_lr"] == pytest.approx([0.001 * 0.95**4])
    state, wanted = state["run_state"], wanted["run_state"]
    assert state["samples"] == wanted["samples"] == 32
    assert state["best_epoch"] == wanted["best_epoch"]
    assert state["best_metrics"] == pytest.approx(wanted["best_metrics"], rel=0, abs=0, nan_ok=True)


def test_epochs_differ(runs):
    """The comparisons above need epochs that differ, and a best epoch after the stop."""
    metrics = pd.read_csv(runs / "whole" / "metrics.csv").query("split == 'trn'")
    assert metrics["loss/all"].nunique() == 4
    assert checkpoint(runs / "whole")["state"]["run_state"]["best_epoch"] == 4
