"""The commands on a system without POSIX's names, as Windows, where processes are spawned: simulated, on this one."""

import os
import re
import subprocess
import sys

import pytest

#: Python runs this first in every process that finds it, spawned ones included.
SITECUSTOMIZE = """
import multiprocessing.context
import os
import signal
import sys

sys.modules["fcntl"] = None  # importing it is an error
for module, names in ((os, ("sched_getaffinity", "getuid", "getpgid", "killpg")), (signal, ("SIGHUP", "SIGQUIT"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
multiprocessing.context._concrete_contexts["fork"] = multiprocessing.context._concrete_contexts["spawn"]
multiprocessing.context._default_context.set_start_method("spawn", force=True)
"""
COMMANDS = """
from luna_monai.apps.cli import main

if __name__ == "__main__":
    size = ["--scans", "4", "--candidates-per-scan", "8", "--nodules-per-scan", "4", "--in-plane", "64", "--seed", "1"]
    folders = ["--dataset-dir", "luna", "--cache-dir", "cache"]
    small = ["--epochs", "1", "samples_per_epoch=8", "batch_size=8"]
    for command in (
        ["synth", "luna", *size, "--slices", "48", "--num-workers", "1"],
        ["precache", *folders, "--num-workers", "1"],
        ["train", *folders, "--output-dir", "run", *small],
        ["report", "run"],
        ["predict", "luna", "--candidates", "luna/candidates.csv", "--output", "scans.json", "--report", "page.html"],
        ["crossval", *folders, "--output-dir", "folds", "--bootstrap", "5", *small[2:], "max_epochs=1"],
    ):
        assert main(command) == 0, command
    print("all done")
"""
RESERVED = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    (folder / "commands.py").write_text(COMMANDS, encoding="utf-8")
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "commands.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "USERNAME": "reader"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all done\n")
    return folder


def test_commands_run_without_the_names_of_posix(workplace):
    for name in ("run/model.pt", "run/report.html", "scans.json", "page.html", "folds/crossval.html"):
        assert (workplace / name).is_file(), name


def test_windows_takes_the_names_of_all_files(workplace):
    names = {part for path in workplace.rglob("*") for part in path.relative_to(workplace).parts}
    assert len(names) > 20
    assert not [name for name in names if RESERVED.search(name)]


def test_the_simulation_has_no_names_of_posix(workplace):
    code = "import os, signal; assert not hasattr(os, 'sched_getaffinity') and not hasattr(signal, 'SIGHUP')"
    code += "\ntry:\n    import fcntl\nexcept ImportError:\n    print('none')"
    environment = {**os.environ, "PYTHONPATH": str(workplace / "site")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == "none\n"


def test_names_of_tracked_files(repository):
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    paths = listed.stdout.splitlines()
    assert not [path for path in paths if any(RESERVED.search(part) for part in path.split("/"))]
    assert len({path.lower() for path in paths}) == len(paths)
