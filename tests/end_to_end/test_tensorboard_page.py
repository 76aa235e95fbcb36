"""TensorBoard itself shows what a run has written."""

import json
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pandas as pd
import pytest

from luna_monai.apps import LunaTrainingApp


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, write_dataset):
    folder = tmp_path_factory.mktemp("tensorboard")
    write_dataset(folder / "luna", scans=2, candidates=20)
    LunaTrainingApp(
        [
            *("--dataset-dir", folder / "luna", "--cache-dir", "null", "--output-dir", folder / "run"),
            *("--epochs", 2, "--batch-size", 10, "--tb-prefix", "p2ch11", "dwlpt"),
        ]
    ).main()
    return folder / "run"


@pytest.fixture(scope="module")
def ask(run_folder):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run_folder / "runs"), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL) as process:

        def get(path, **query):
            url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)

        deadline = time.monotonic() + 60
        while True:
            try:
                if len(get("plugin/scalars/tags")) == 2:
                    break
            except OSError:
                pass
            assert time.monotonic() < deadline, "TensorBoard did not come up"
            time.sleep(0.2)
        yield get
        process.terminate()


def split_of(run):
    return "trn" if "-trn_cls-dwlpt" in run else "val"


def test_scalars(ask, run_folder):
    metrics = pd.read_csv(run_folder / "metrics.csv").set_index(["split", "samples"])
    tags = ask("plugin/scalars/tags")
    for run in tags:
        assert {f"{kind}/{part}" for kind in ("loss", "correct") for part in ("all", "neg", "pos")} <= set(tags[run])
        for tag in ("loss/all", "correct/neg", "correct/pos"):
            points = ask("plugin/scalars/scalars", run=run, tag=tag)
            assert [step for _, step, _ in points] == [20, 40]
            for _, step, value in points:
                assert value == pytest.approx(metrics.loc[(split_of(run), step), tag], rel=1e-5)


def test_precision_recall_curves(ask):
    for run in ask("plugin/pr_curves/tags"):
        curves = ask("plugin/pr_curves/pr_curves", run=run, tag="pr")[run]
        assert [curve["step"] for curve in curves] == [20, 40]
        for curve in curves:
            # With threshold 0 everything is found.
            assert curve["recall"][0] == pytest.approx(1)
            positives = curve["true_positives"][0]
            assert positives == (2 if split_of(run) == "val" else 10)


def test_histograms(ask):
    tags = ask("plugin/histograms/tags")
    shown = {tag for run in tags for tag in tags[run]}
    assert shown <= {"is_neg", "is_pos"}
    for run in tags:
        for tag in tags[run]:
            for _, step, buckets in ask("plugin/histograms/histograms", run=run, tag=tag):
                assert step in (20, 40)
                edges = [edge for left, right, _ in buckets for edge in (left, right)]
                assert min(edges) >= -1e-6
                assert max(edges) <= 1.02
                assert sum(count for *_, count in buckets) > 0
    assert shown
