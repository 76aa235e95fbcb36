"""The commands of the README, as a user types them."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest

#: MONAI says so each time a configuration is run.
MONAIS_NOTICE = "only proceed if this config is from a source you trust"


def run(*command, cwd, **environment):
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def assert_no_warning(result):
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    if lines and MONAIS_NOTICE in lines[0].lower():
        lines = lines[2:]  # the notice, and the line of MONAI's source that it points to
    assert not lines, result.stderr
    assert "WARNING" not in result.stdout
    assert "ERROR" not in result.stdout


def assert_run_folder(folder):
    for name in (
        "model.pt",
        "checkpoint.pt",
        "config.yaml",
        "metrics.csv",
        "predictions/trn.csv",
        "predictions/val.csv",
    ):
        assert (folder / name).is_file(), name
    assert pd.read_csv(folder / "metrics.csv")["split"].tolist() == ["trn", "val"]
    assert len(list(folder.glob("runs/luna_monai/*-trn_cls-train/events*"))) == 1
    assert len(list(folder.glob("runs/luna_monai/*-val_cls-train/events*"))) == 1


KILL = """
import os, signal
from monai.transforms import Transform
class Kill(Transform):
    def __call__(self, data):
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_error_in_a_worker_ends_the_bundle_at_once_from_any_folder(repository, make_dataset, tmp_path):
    (tmp_path / "kill.py").write_text(KILL)
    (tmp_path / "overlay.yaml").write_text("+train#deterministic_transforms: [{_target_: kill.Kill}]")
    files = [str(path) for path in (repository / "bundle" / "configs" / "train.yaml", tmp_path / "overlay.yaml")]
    result = run(
        *(sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", files),
        *("--dataset_dir", make_dataset(), "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run"),
        *("--precache_workers", 2),
        cwd=tmp_path,
        PYTHONPATH=f"{repository}{os.pathsep}{tmp_path}",
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "a worker was killed" in last
    assert not (tmp_path / "run").exists()


def test_bundle_from_the_root_of_the_repository(repository, make_dataset, tmp_path):
    result = run(
        *(sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", "bundle/configs/train.yaml"),
        *("--dataset_dir", os.path.relpath(make_dataset(), repository), "--fold", 1),
        *("--max_epochs", 1, "--samples_per_epoch", 8, "--batch_size", 8),
        *("--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / "run"),
        cwd=repository,
    )
    assert_no_warning(result)
    assert_run_folder(tmp_path / "run")
    assert "E1 val_pos" in result.stdout


@pytest.fixture(scope="module")
def wheel_site(repository, tmp_path_factory):
    """Install the built wheel into a folder of its own, which comes before everything else that is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, repository), cwd=folder
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    installed = run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", folder / "site"),
        wheel,
        cwd=folder,
    )
    assert installed.returncode == 0, installed.stderr
    return folder / "site"


def test_wheel_trains_from_any_folder(repository, wheel_site, make_dataset, tmp_path):
    where = run(
        sys.executable, "-c", "import luna_monai; print(luna_monai.__file__)", cwd=tmp_path, PYTHONPATH=str(wheel_site)
    )
    assert where.stdout.startswith(str(wheel_site))
    result = run(
        *(sys.executable, "-m", "luna_monai", "train", "--dataset-dir", make_dataset(), "--cache-dir", "null"),
        *("--output-dir", "run", "--epochs", 1, "--batch-size", 8, "samples_per_epoch=8"),
        cwd=tmp_path,
        PYTHONPATH=str(wheel_site),
    )
    assert_no_warning(result)
    assert (tmp_path / "run" / "model.pt").is_file()
    # What MONAI finds in it is the repository's.
    share = wheel_site / "luna_monai" / "_share"
    shipped = {path.relative_to(share).as_posix(): path for path in share.rglob("*") if path.is_file()}
    assert all(path.read_bytes() == (repository / name).read_bytes() for name, path in shipped.items())
    for name in ("configs/train.yaml", "configs/metadata.json", "configs/logging.conf", "models/model.pt"):
        assert f"bundle/{name}" in shipped


def test_help_is_quick_and_lists_every_command(tmp_path):
    from luna_monai.apps.cli import COMMANDS

    durations = []
    for _ in range(5):
        start = time.perf_counter()
        result = run(sys.executable, "-m", "luna_monai", "--help", cwd=tmp_path)
        durations.append(time.perf_counter() - start)
    assert all(name in result.stdout for name in COMMANDS)
    assert min(durations) < 0.3


def test_unknown_command_is_a_usage_error(tmp_path):
    result = run(sys.executable, "-m", "luna_monai", "nosuch", cwd=tmp_path)
    assert result.returncode == 2
    assert "usage: luna-monai" in result.stderr


def test_without_a_command_the_commands_are_shown(tmp_path):
    result = run(sys.executable, "-m", "luna_monai", cwd=tmp_path)
    assert result.returncode == 0
    assert "export" in result.stdout


@pytest.mark.parametrize("module", ["luna_monai.apps.synth", "luna_monai.apps.froc", "luna_monai.synthetic"])
def test_modules_without_networks_do_not_import_torch(module, tmp_path):
    code = f"import sys, {module}; print([name for name in ('torch', 'monai') if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_lazy_names_are_all_there():
    import luna_monai.apps
    import luna_monai.data
    import luna_monai.training

    for package in (luna_monai.apps, luna_monai.data, luna_monai.training):
        assert all(getattr(package, name) is not None for name in package.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
