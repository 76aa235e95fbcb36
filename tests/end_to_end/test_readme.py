"""Every command of the README, its pages in docs/ and ``make demo`` is run here, on data small enough for a test."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_monai.apps.cli import main
from luna_monai.scans import read_scan

#: In this order, for some commands use what others have written.
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("data", "training", "book", "evaluation", "prediction", "installation")),
]
#: Run by make itself, by .ci/run, or by the test named.
RUN_ELSEWHERE = {
    "make demo": "test_demo below",
    "pip install .": "test_commands.py, test_packaging.py",
    "make test": ".ci/run",
    "make install": ".ci/run",
    "make release-check": "test_packaging.py",
    "luna-monai precache --config synthetic --config demo": "test_demo below",
    "luna-monai train --config synthetic --config demo": "test_demo below",
    "python3 -m venv .venv": "make install",
    ".venv/bin/pip install torch==2.13.0": "make install",
    ".venv/bin/pip install --constraint constraints.txt --editable .[dev]": "make install",
    "torchrun --nproc_per_node=8 -m monai.bundle run training --config_file "
    "['bundle/configs/train.yaml','bundle/configs/multi_gpu_train.yaml'] "
    "--dataset_dir data-unversioned/part2/luna": "test_distributed.py, two processes",
    "tensorboard --logdir data-unversioned/output/runs": "test_tensorboard_page.py",
    "luna-monai train --dataset-dir data-unversioned/part2/luna --distributed 2": "tests/apps/test_distributed_app.py",
    "luna-monai train --tracking mlflow --output-dir data-unversioned/tracked": "tests/training/test_tracking.py",
}


def commands_of(text):
    """Yield the commands of the text's ``bash`` blocks, one word list each."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"(^|\s)#.*", "", line))  # a # inside a word is part of a key
            if words:
                yield words


def write_scans(folder, luna, write_dicom):
    """Write what the section on prediction has: a NIfTI file, a DICOM study, and candidates."""
    path = luna / "subset0" / "1.2.3.0.mhd"
    sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / "scan.nii.gz"))
    scan = read_scan(path)
    voxels, geometry = scan.voxels, scan.geometry
    for seriesuid in ("1.2.826.7", "1.2.826.8"):
        write_dicom(folder / "study" / seriesuid, np.clip(voxels, -1024, 1500), geometry, seriesuid=seriesuid)
    points = pd.read_csv(luna / "candidates.csv").query("seriesuid == '1.2.3.0'")[["coordX", "coordY", "coordZ"]]
    points.to_csv(folder / "points.csv", index=False)
    (points * [-1, -1, 1]).to_csv(folder / "candidates.csv", index=False)


@pytest.fixture
def workplace(repository, tmp_path, monkeypatch, write_dataset, write_dicom):
    """Return a folder that looks like a checkout, with small data where the README has them."""
    for name in ("bundle", "configs"):
        shutil.copytree(repository / name, tmp_path / name)
    pages = "".join((repository / page).read_text(encoding="utf-8") for page in PAGES)
    for name, text in re.findall(r"```yaml\n# (configs/\S+)\n(.*?)```", pages, flags=re.DOTALL):
        (tmp_path / name).write_text(text.replace("max_epochs: 30", "max_epochs: 1"))
    for name in ("part2/luna", "small", "synthetic/luna", "held-out", "rare"):
        write_dataset(tmp_path / "data-unversioned" / name, scans=2, candidates=12)
    luna = tmp_path / "data-unversioned" / "part2" / "luna"
    annotations = pd.read_csv(luna / "annotations.csv")
    annotations.to_csv(tmp_path / "annotations.csv", index=False)
    annotations.iloc[:0].to_csv(tmp_path / "annotations_excluded.csv", index=False)
    annotations["seriesuid"].to_csv(tmp_path / "seriesuids.csv", index=False, header=False)
    write_scans(tmp_path, luna, write_dicom)
    submission = pd.read_csv(luna / "candidates.csv").drop(columns="class")
    submission.assign(probability=np.linspace(0, 1, len(submission))).to_csv(tmp_path / "submission.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def smaller(words):
    """Replace arguments of a command by smaller ones, to save time."""
    less = {"--epochs": "1", "--max_epochs": "1", "--num-workers": "0", "--bootstrap": "10"}
    return [less.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def run(words, folder):
    if words[0] == "luna-monai":
        if words[1] == "crossval":
            words = [*words, "--bootstrap", "10"]
        if words[1] == "synth":
            words = [*words[:2], str(folder / "new" / words[2]), *words[3:]]
            words += ["--scans", "2", "--candidates-per-scan", "10", "--in-plane", "96", "--slices", "48"]
            words += ["--whole-thoraxes", "0"]
        if words[1] in ("train", "crossval"):
            words = [*words, "max_epochs=1", "batch_size=8"]
            words += [] if "book_ch11" in words else ["samples_per_epoch=16"]  # which has no effect there
        return main(smaller(words[1:]))
    if words[:4] == ["python", "-m", "monai.bundle", "run"]:
        from monai.bundle import run as run_bundle

        words = words if not words[4].startswith("--") else [*words[:4], "run", *words[4:]]
        options = {key.removeprefix("--"): value for key, value in zip(words[5::2], words[6::2], strict=True)}
        files = options.pop("config_file")
        numbers = {key: int(value) if value.isdigit() else value for key, value in options.items()}
        run_bundle(words[4], config_file=json.loads(files.replace("'", '"')) if "[" in files else files, **numbers)
        return 0
    if words[0] == "python" and words[1].startswith("benchmarks/"):
        assert (Path(__file__).parents[2] / words[1]).is_file()  # tests/benchmarks runs them
        return 0
    if words[0] == "ls":
        shown = subprocess.run(["bash", "-c", " ".join(words)], cwd=folder, check=False, capture_output=True, text=True)
        assert not shown.stderr
        assert shown.stdout.strip().isdigit()
        return 0
    raise AssertionError(f"a command that no test runs: {shlex.join(words)}")


# MONAI says of every configuration that it may run code.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
# torchrun leaves it open.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO name='/dev/null'")
def test_every_command_of_the_readme_and_its_pages(repository, workplace):
    ran, done = [], []
    for page in PAGES:
        for words in commands_of((repository / page).read_text(encoding="utf-8")):
            if " ".join(words) in RUN_ELSEWHERE or words in done:
                continue
            status = run(words, workplace)
            # The doctor's dataset here is not all of LUNA16, and of noise: it says so with status 1.
            assert status == 0 or words[1] == "doctor", f"{page}: {shlex.join(words)}"
            ran.append(words[1])
            done.append(words)
    assert {"synth", "train", "precache", "doctor", "froc", "-m"} <= set(ran)


def test_demo(repository, workplace, capsys):
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    planned = plan.replace("\\\n", " ").splitlines()
    lines = [line for line in planned if line.startswith(".venv/bin/") and "pip install" not in line]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line.removeprefix(".venv/bin/"))
        if words[1] == "synth":
            small = ["--scans", "6", "--candidates-per-scan", "12", "--in-plane", "96", "--slices", "48"]
            assert main([*words[1:], *small, "--num-workers", "0"]) == 0
        else:
            run(words, workplace)
    output = workplace / "data-unversioned" / "demo" / "output"
    assert (output / "model.pt").is_file()
    last = capsys.readouterr().out.splitlines()[-1]
    assert "tensorboard --logdir data-unversioned/demo/output/runs" in last


def test_pictures_and_files_named_in_the_readme_exist(repository):
    for page in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for name in re.findall(r"!?\[[^\]]*\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert name.startswith("http") or (page.parent / name).exists(), f"{page.name}: {name}"
