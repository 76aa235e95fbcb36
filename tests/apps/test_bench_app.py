"""``luna-monai bench`` as a user runs it."""

import json

import pandas as pd
import pytest

from luna_monai.apps.base import run_app
from luna_monai.apps.bench import LunaBenchApp, plot, sentence, to_dict
from luna_monai.data.timing import LoadingTimes


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
    ],
)
def test_mistakes_are_one_line(make_dataset, tmp_path, capsys, arguments, message):
    options = ["data", "--dataset-dir", make_dataset(), "--cache-dir", tmp_path / "cache", *arguments]
    assert run_app(LunaBenchApp, options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
