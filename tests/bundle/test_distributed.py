"""Two processes train as one process with the same batches does, and leave the same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
TRAIN = [str(CONFIGS / "train.yaml")]
DISTRIBUTED = [*TRAIN, str(CONFIGS / "multi_gpu_train.yaml")]


@pytest.fixture(scope="module")
def folder(write_dataset, tmp_path_factory):
    """Train in several ways: two processes take every second sample, 9 of 18 in an epoch, 11 and 10 in validation."""
    folder = tmp_path_factory.mktemp("runs")
    common = {
        "dataset_dir": str(write_dataset(folder / "luna", scans=2, candidates=21)),
        "cache_dir": str(folder / "cache"),
        "batch_size": 8,
        "val_batch_size": 5,
        "max_epochs": 2,
        "samples_per_epoch": 18,
        "precision": "float32",
        "precache_workers": 2,
        "device": "$torch.device('cpu')",
        "network_def": {"_target_": "distributed_jobs.network_without_batch_statistics"},
    }
    same = {"train#augmentation": None}
    # Inductor, the default, takes a minute to compile what this backend runs as it is.
    quickly_compiled = {
        f"{engine}#compile_kwargs": {"backend": "eager"} for engine in ("train#trainer", "validate#evaluator")
    }

    def job(name, processes, files=DISTRIBUTED, run_id="training", **overrides):
        overrides = common | {"output_dir": str(folder / name)} | overrides
        return {"processes": processes, "run_id": run_id, "files": files, "overrides": overrides}

    recorded = [str(folder / "two" / "config.yaml"), str(CONFIGS / "evaluate.yaml")]
    jobs = [
        job("two", 2, **same),
        job("one", 0, TRAIN, **same),
        job("whole", 2),
        job("resumed", 2, max_epochs=1),
        job("resumed", 2, max_epochs=2, resume=True),
        job("resumed", 0, max_epochs=3, resume=True),
        job(
            "odd",
            2,
            max_epochs=1,
            samples_per_epoch=17,
            precision="auto",
            network_def={"_target_": "luna_monai.networks.LunaModel", "conv_channels": 2},
        ),
        job("compiled", 2, compile=True, max_epochs=1, **same, **quickly_compiled),
        job("evaluated", 2, recorded, "evaluating", weights=str(folder / "two" / "model.pt")),
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("distributed_jobs.py")), str(folder / "jobs.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Slurm gives the one task of a machine the local number 0, which is not that of all its processes.
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_ID": "1", "SLURM_LOCALID": "0"},
        check=False,
    )
    (folder / "log.txt").write_text(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def metrics(folder):
    return pd.read_csv(folder / "metrics.csv")


def log_of(folder, number):
    return (folder / "log.txt").read_text().split("job {")[number + 1]


def test_metrics_are_those_of_one_process(folder):
    two, one = metrics(folder / "two"), metrics(folder / "one")
    assert two["samples"].tolist() == [18, 18, 36, 36]
    assert one["loss/all"].nunique() == 4
    pd.testing.assert_frame_equal(two, one, rtol=0, atol=1e-4)


def test_metrics_with_a_compiled_network(folder):
    pd.testing.assert_frame_equal(metrics(folder / "compiled"), metrics(folder / "two")[:2], rtol=0, atol=1e-4)


def test_weights_are_those_of_one_process(folder):
    two, one = (torch.load(folder / name / "checkpoint.pt", weights_only=True)["state"] for name in ("two", "one"))
    assert two["network"].keys() == one["network"].keys()
    for name, value in one["network"].items():
        torch.testing.assert_close(two["network"][name], value, rtol=1e-3, atol=1e-4)


def test_every_validation_sample_counts_once(folder):
    two, one = (pd.read_csv(folder / name / "predictions" / "val.csv") for name in ("two", "one"))
    assert len(two) == 21
    pd.testing.assert_frame_equal(two, one, rtol=0, atol=1e-4)


def test_an_epoch_of_odd_length_is_filled_up_and_batches_are_normalized_by_each_process(folder):
    table = metrics(folder / "odd")
    assert table["loss/all"].notna().all()
    assert table["samples"].tolist() == [18, 18]
    assert table[["count/neg", "count/pos"]].sum(axis=1).tolist() == [18, 21]


def test_only_the_first_process_writes_and_logs(folder):
    runs = list((folder / "two" / "runs").glob("*/*"))
    assert sorted(run.name[20:] for run in runs) == ["trn_cls-train", "val_cls-train"]
    assert all(len(list(run.iterdir())) == 1 for run in runs)
    assert not list(folder.rglob("*.tmp"))
    log = log_of(folder, 0)
    for line in ("E1 trn_pos", "E1 val_pos", "precision: float32", "2 processes"):
        assert log.count(line) == 1, line
    assert "Warning" not in (folder / "log.txt").read_text()


def test_the_cache_is_filled_by_both(folder):
    log = log_of(folder, 0)
    assert "cache: 1 series to add" in log
    assert "of shard 1/2" in log
    assert len(list((folder / "cache").glob("*.pt"))) == 2


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    whole, resumed = metrics(folder / "whole"), metrics(folder / "resumed")
    assert len(whole) == 4
    pd.testing.assert_frame_equal(resumed[:4], whole)


def test_resuming_with_another_number_of_processes(folder):
    table = metrics(folder / "resumed")
    assert table["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    assert table["samples"].tolist() == [18, 18, 36, 36, 54, 54]
    checkpoint = torch.load(folder / "resumed" / "checkpoint.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["iteration"]) == (3, 9)
    assert checkpoint["state"]["run_state"]["samples"] == 54


def test_evaluation(folder):
    table, best = (pd.read_csv(folder / name) for name in ("evaluated/predictions.csv", "two/predictions/val.csv"))
    assert len(best) == 21
    pd.testing.assert_frame_equal(table, best, rtol=0, atol=1e-5)
