"""The benchmarks run from beginning to end, and what the docs promise about real data holds. Times are not checked."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder for half a gigabyte of scans and their cache, shared by the benchmarks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    yield folder
    shutil.rmtree(folder)


def run_script(script: Path, options: list[str], folder: Path) -> None:
    """Make this process what ``python SCRIPT OPTIONS`` is, with its output in files of the folder."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = [str(script), *options]
    sys.path[:0] = [str(script.parent), str(script.parents[1])]
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture
def run(repository, folder):
    def run(name: str, *options: object) -> str:
        process = multiprocessing.get_context("forkserver").Process(
            target=run_script, args=(repository / "benchmarks" / name, [*map(str, options)], folder)
        )
        process.start()
        process.join()
        errors = (folder / "stderr").read_text()
        assert process.exitcode == 0, errors[-3000:]
        assert "Traceback" not in errors
        return (folder / "stdout").read_text()

    return run


def rows_of(text: str) -> list[list[str]]:
    return [re.split(r" \| ", line.strip("| \n")) for line in text.splitlines() if line.startswith("| ")]


def test_everything_about_a_gpu(run, folder):
    """The GPU's script holds network, loader, training and engine, so this runs those benchmarks too."""
    text = run("gpu.py", folder, "--quick")
    assert "samples/s on one H200" in text
    rows = {row[0]: row[1:] for row in rows_of(text)}
    assert {"the book's", "channels last", "4", "bare loop", "all handlers"} <= rows.keys()


def test_where_the_time_goes(run, folder):
    rows = {row[0]: row[1:] for row in rows_of(run("profiling.py", folder, "--samples", 16))}
    for column in range(3):
        parts = {name: float(values[column].split()[0]) for name, values in rows.items() if name[0] != "m"}
        total = parts.pop("all")
        assert sum(parts.values()) == pytest.approx(total, abs=0.1)
        assert parts["convolution, backward"] > 0.2 * total


def test_memory_stays_flat(run, folder):
    # Three epochs are too few to detect growth; the test checks that it is measured and reported.
    text = run("soak.py", folder, "--epochs", 3, "--samples", 16, "--allowed", 1000)
    assert re.search(r"[+-][\d.]+ MB per epoch after warm-up, [+-]0 open files", text)
    assert [row[0] for row in rows_of(text)] == ["epoch", "1", "3"]


def test_loading_by_workers_and_batch_sizes(run, write_dataset, tmp_path):
    """Exercise 1 of the book's chapter 11.12."""
    cache_dir, output = tmp_path / "cache", tmp_path / "output"
    cache_dir.mkdir()
    (cache_dir / "precious.pt").write_text("what was cached")
    options = ["--dataset-dir", write_dataset(tmp_path / "luna", scans=4), "--cache-dir", cache_dir, "--max-series", 3]
    text = run("loading.py", *options, "--num-workers", "0,2", "--batch-size", "5,16", "--output-dir", output)
    assert "Best on this machine: num_workers" in text
    found = json.loads((output / "loading.json").read_text())
    settings = [(row["num_workers"], row["batch_size"]) for row in found["settings"]]
    assert settings == [(0, 5), (0, 16), (2, 5), (2, 16)]
    assert all(row[name] > 0 for row in found["settings"] for name in ("first", "cold", "warm", "memory_mb"))
    assert (found["candidates"], found["series"]) == (36, 3)
    assert (output / "loading.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in cache_dir.iterdir()] == ["precious.pt"]


def test_findings_of_real_nodules(run, shared_data):
    """The goals in docs/findings.md: three nodules in the first eight findings, sizes of 85 crops."""
    rows = rows_of(run("findings.py", shared_data, "--scans", 0))
    scans = [row for row in rows if re.search(r"\([+-]\d+%\)", row[2])]
    assert len(scans) == 3
    for _, _, found, rank, *_ in scans:
        assert abs(int(re.search(r"([+-]\d+)%", found)[1])) <= 25
        assert int(rank.split()[0]) <= 8
    (nodules,) = (row[1:] for row in rows if row[0] == "all")
    number, without_size, median_error = (float(value.rstrip("%")) for value in nodules[:3])
    assert number == 85
    assert without_size <= 10
    assert median_error <= 15


def test_sensitivity_on_real_nodules(run, shared_data, repository):
    bundle = repository / "bundle"
    files = [shared_data / "real_nodules.npz", shared_data / "luna16_mini", bundle / "models" / "model.pt"]
    header, row = rows_of(run("real_nodules.py", *files))
    found = {name: value.removesuffix(" %") for name, value in zip(header, row, strict=True)}
    claimed = json.loads((bundle / "configs" / "metadata.json").read_text())["eval_metrics"]
    for rate in (4, 1):
        share = claimed[f"real_nodules_sensitivity_at_{rate}"]
        assert float(found[f"{rate} FP: all"]) == pytest.approx(100 * share, abs=2)  # one nodule is 1.2 %
    assert (found["own at 4"], found["own at 1"]) == ("3 of 3", "3 of 3")
