"""What is installed and uploaded: bounds of versions, the source distribution and the wheel."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def pins_of(path):
    lines = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in lines}


def lower_bound(requirement):
    (bound,) = requirement.specifier
    assert bound.operator == ">=", f"{requirement}: a lower bound and nothing else"
    return Version(bound.version)


def test_lower_bounds_are_the_oldest_versions_that_are_tested(repository, project):
    oldest, newest = (pins_of(repository / name) for name in ("constraints-oldest.txt", "constraints.txt"))
    for text in project["dependencies"]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert oldest[name] == lower_bound(requirement) <= newest[name], name
    for extra in ("dicom", "export", "mlflow", "notebook"):
        for text in project["optional-dependencies"][extra]:
            requirement = Requirement(text)
            assert oldest[canonicalize_name(requirement.name)] == lower_bound(requirement), requirement
    assert {"pyparsing"} == oldest.keys() - {
        canonicalize_name(Requirement(text).name)
        for texts in (project["dependencies"], *project["optional-dependencies"].values())
        for text in texts
    }


@pytest.fixture(scope="module")
def release(repository, tmp_path_factory):
    """Run the commands of 'make release-check' in a temporary folder, and return the folder."""
    pytest.importorskip("twine")
    pytest.importorskip("check_wheel_contents")
    dist = tmp_path_factory.mktemp("release") / "dist"
    plan = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "release-check"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = plan[plan.index("rm -rf dist") :].splitlines()
    assert len(lines) == 6
    for line in lines:
        command = line.replace(".venv/bin/", f"{shlex.quote(str(Path(sys.executable).parent))}/")
        command = re.sub(r"\bdist\b", shlex.quote(str(dist)), command)
        done = subprocess.run(["bash", "-c", command], cwd=repository, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return dist


def test_a_release_is_a_source_distribution_and_the_wheel_that_it_builds(release):
    names = sorted(path.name for path in release.iterdir())
    assert [re.sub(r"-[\d.]+\d", "", name) for name in names] == [
        "luna_monai-py3-none-any.whl",
        "luna_monai.tar.gz",
        "tree",
    ]
