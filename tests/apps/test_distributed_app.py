"""``--distributed``: torchrun's processes from the command line, and what is left when one of them goes."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from luna_monai.apps import LunaTrainingApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError
from luna_monai.torchrun import _reason


@pytest.fixture
def arguments(make_dataset, tmp_path, without_gpus):
    return [
        *("--dataset-dir", str(make_dataset(scans=2, candidates=12)), "--cache-dir", str(tmp_path / "cache")),
        *("--output-dir", str(tmp_path / "run"), "--batch-size", "8"),
        "device=$torch.device('cpu')",
    ]


def workers_of(process):
    """Find the processes that torchrun has started, in the order of their ranks."""
    children = psutil.Process(process.pid).children()
    ranks = {child.environ().get("RANK"): child for child in children}
    return [ranks[rank] for rank in sorted(rank for rank in ranks if rank is not None)]


def start_training(processes, arguments, awaited):
    """Start a long training, and wait for one of its files."""
    process = subprocess.Popen(
        [sys.executable, "-m", "luna_monai", "train", "--distributed", processes, "--epochs", "1000", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(awaited.parent.parent)},  # a killed one leaves its logs
    )
    deadline = time.monotonic() + 120
    while not awaited.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {awaited.name} after two minutes: {process.communicate()[1]}")
        time.sleep(0.1)
    return process


def test_processes_end_with_the_command(arguments, tmp_path):
    process = start_training("1", arguments, tmp_path / "run" / "checkpoint.pt")
    (worker,) = workers_of(process)
    process.kill()
    process.communicate(timeout=60)
    worker.wait(timeout=60)


def test_a_killed_process_ends_the_run_with_a_line(arguments, tmp_path):
    process = start_training("2", arguments, tmp_path / "run" / "checkpoint-previous.pt")
    try:
        first, second = workers_of(process)
        second.send_signal(signal.SIGKILL)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert error.count("\n") == 1, error
    assert error.startswith("luna-monai train: error: process 2 of 2 was ended by SIGKILL, and the others were stopped")
    assert not first.is_running()
    # Whole files only, all of the same epoch or of the one before the checkpoint's.
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True).keys() == checkpoint["state"]["network"].keys()
    epochs = pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"]
    assert epochs.max() - checkpoint["epoch"] in (0, 1)
    assert len(pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")) == 12

    last = int(checkpoint["epoch"]) + 1
    assert LunaTrainingApp([*arguments, "--resume", "--epochs", last]).main() == 0
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"].tolist() == [
        e for e in range(1, last + 1) for _ in "tv"
    ]


# torchrun leaves it open.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO name='/dev/null'")
def test_an_error_of_a_process_is_one_line(arguments, tmp_path, capfd):
    assert run_app(LunaTrainingApp, [*arguments, "--fold", 9, "--distributed", 1]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("luna-monai train: error: fold 9: no scan with candidates in")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [["--config", "null.yaml"], ["train#sampler=null", "train#dataloader#shuffle=true"]])
def test_no_sampler_is_refused(arguments, tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "null.yaml").write_text("train#sampler: null\ntrain#dataloader#shuffle: true\n")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # as in a process that torchrun starts
    assert run_app(LunaTrainingApp, [*arguments, *given]) == 1
    assert "train#sampler: null cannot divide the samples among processes" in capsys.readouterr().err


def test_the_tracebacks_of_all_processes_are_the_reason(tmp_path):
    """A process that waits for another one fails as soon as the other one has ended."""
    failures = {}
    for rank, trace in enumerate(["connection closed by peer", "IndexError"]):
        file = tmp_path / f"{rank}.json"
        message = {"message": "RuntimeError: failed", "extraInfo": {"py_callstack": trace, "timestamp": "1"}}
        file.write_text(json.dumps({"message": message}))
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=1, error_file=str(file))
    expected = "2 of 2 processes failed, and the others were stopped\nconnection closed by peer\nIndexError"
    assert str(_reason(failures, 2)) == expected


@pytest.mark.parametrize("processes", [0, -2, 9999])
def test_invalid_numbers_of_processes(arguments, processes):
    with pytest.raises(LunaError, match=f"--distributed {processes}: use from 1 to .* processes \\(this machine: "):
        LunaTrainingApp([*arguments, "--distributed", processes]).main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to start a process for")
def test_all_gpus_of_a_machine_without_any(arguments):
    with pytest.raises(LunaError, match=r"--distributed 0: use from 1 to .* processes .this machine: 0 GPUs"):
        LunaTrainingApp([*arguments, "--distributed"]).main()
