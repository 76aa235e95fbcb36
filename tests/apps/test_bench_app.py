"""``luna-monai bench`` as a user runs it."""

import json

import pandas as pd
import pytest
import torch

from luna_monai.apps import bench_loops
from luna_monai.apps.base import run_app
from luna_monai.apps.bench import LunaBenchApp, plot, sentence, to_dict
from luna_monai.apps.bench_loops import BOOK, OURS, LoopTimes, book_loop
from luna_monai.data import CandidateDataset, SeriesCache, read_candidates, series_items
from luna_monai.data.timing import LoadingTimes
from luna_monai.training.speed import Roofline
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand


def test_bench_data(make_dataset, tmp_path, capsys):
    cache_dir, output = tmp_path / "cache", tmp_path / "output"
    cache_dir.mkdir()
    (cache_dir / "precious.pt").write_text("what was cached")
    options = ["data", "--dataset-dir", make_dataset(scans=4), "--cache-dir", cache_dir, "--max-series", 3]
    sizes = ["--num-workers", "0,2", "--batch-size", "5,16"]
    assert run_app(LunaBenchApp, [*options, *sizes, "--output-dir", output]) == 0
    text = capsys.readouterr().out
    assert "Best on this machine: num_workers" in text
    table = pd.read_csv(output / "bench_data.csv")
    assert list(zip(table["num_workers"], table["batch_size"], strict=True)) == [(0, 5), (0, 16), (2, 5), (2, 16)]
    assert (table[["first", "cold", "warm", "memory_mb"]] > 0).all(axis=None)
    found = json.loads((output / "bench_data.json").read_text())
    assert (found["candidates"], found["series"], len(found["settings"])) == (36, 3, 4)
    assert found["sentence"] in text
    assert (output / "bench_data.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in cache_dir.iterdir()] == ["precious.pt"]


@pytest.mark.parametrize(("what", "gflop"), [("train", 1.86), ("predict", 0.62)])
def test_bench_of_a_loop(make_dataset, tmp_path, capsys, monkeypatch, what, gflop):
    # The book's loader can't take what is on a GPU.
    monkeypatch.setattr(bench_loops, "book_loop", lambda data, *args: data.device or book_loop(data, *args))
    options = [what, "--dataset-dir", make_dataset(scans=2), "--cache-dir", tmp_path / "cache"]
    options += [
        "precision=float32",
        "batch_size=4",
        "val_batch_size=20",
        "cache_on_device=true",
        "--output-dir",
        tmp_path / "output",
    ]
    assert run_app(LunaBenchApp, [*options, "--samples", 8, "--repeats", 1]) == 0
    output = capsys.readouterr()
    assert "times the book's loop" in output.out
    assert "E1 " not in output.out  # no line for each epoch
    assert "Exception" not in output.err
    found = json.loads((tmp_path / "output" / f"bench_{what}.json").read_text())
    assert (found["samples"], found["batch_size"]) == {"train": (8, 4), "predict": (12, 20)}[what]
    assert found["precision"] == "float32"
    assert found["samples_per_second"].keys() == found["seconds"].keys() == {BOOK, OURS}
    assert [len(rounds) for rounds in found["seconds"].values()] == [1, 1]
    assert found["roofline"]["operations_per_sample"] == pytest.approx(gflop * 1e9, rel=0.01)
    assert min(found["roofline"].values()) > 0
    assert 0 <= found["data_wait"] <= 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "luna", "output"]


def test_figures_of_a_loop():
    seconds = {BOOK: [10.0, 30.0, 12.0], OURS: [5.0, 10.0, 3.0]}
    times = LoopTimes("training", 60, 32, seconds, "bfloat16", "CPU", 1.5, 700, Roofline(2e9, 6e7, 1e11, 1.2e10))
    assert times.rate(BOOK) == 5
    assert times.ratio == 3  # the median of 2, 3 and 4: round by round, so that a busy machine falls on both
    text = "\n".join(times.lines())
    assert "luna-monai, bfloat16            12.0 samples/s (6.0 to 20.0)" in text
    assert "at most 50 samples/s by arithmetic and 200 by memory" in text
    assert "12.0 are 24 % and 6 % of it" in text


def test_the_books_loop_learns_and_counts(make_dataset):
    candidates = read_candidates(make_dataset(scans=1))
    transforms = [LoadScand("image"), CropCandidatesd("image", (32, 48, 48)), ClipIntensityRanged("image", -1000, 1000)]
    dataset = CandidateDataset(candidates, SeriesCache(series_items(candidates), transforms, None))
    torch.manual_seed(0)
    loop = book_loop(dataset, samples=15, batch_size=4)  # 12 candidates, the first of them again
    before = loop.validate()
    assert loop.validate() == before
    losses = [loop.train()["loss/all"] for _ in range(3)]
    assert losses[2] < losses[0]
    correct = before["correct/pos"] * 4 + before["correct/neg"] * 11  # 2 nodules first, each twice
    assert before["correct/all"] == pytest.approx(correct / 15, rel=1e-3)


def test_best_is_the_smallest_setting_near_the_fastest():
    rows = [(0, 32, 500, 8000, 9500, 400), (0, 256, 500, 8000, 10000, 500), (2, 32, 900, 4000, 3000, 900)]
    columns = ["num_workers", "batch_size", "first", "cold", "warm", "memory_mb"]
    times = LoadingTimes(pd.DataFrame(rows, columns=columns), 100, 2)
    assert (times.best["num_workers"], times.best["batch_size"]) == (0, 32)
    assert "num_workers 0 with batch_size 32, 9,500 candidates/s" in sentence(times)
    assert "num_workers 2 with batch_size 32, gives 3,000" in sentence(times)
    assert to_dict(times)["best"]["warm"] == 9500
    assert plot(times).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-workers", "two"], "--num-workers two: expected whole numbers from 0"),
        (["--batch-size", "0"], "--batch-size 0: expected whole numbers from 1"),
        (["--max-series", "0"], "--max-series 0: at least 1"),
        (["--cache-dir", "null"], "cache_dir is null"),
        (["--repeats", "0"], "--repeats 0: at least 1"),
        (["--samples", "0"], "--samples 0: at least 1"),
        (["fold=1"], "fold=1: 'bench data' takes options only"),
    ],
)
def test_mistakes_are_one_line(make_dataset, tmp_path, capsys, arguments, message):
    options = ["data", "--dataset-dir", make_dataset(), "--cache-dir", tmp_path / "cache", *arguments]
    assert run_app(LunaBenchApp, options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
