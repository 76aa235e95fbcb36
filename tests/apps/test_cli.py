"""The console script: its commands, its version, and what it does without torch."""

import subprocess
import sys

import pytest

from luna_monai.apps import LunaTrainingApp
from luna_monai.apps.cli import COMMANDS, main, run_app


def test_without_a_command_it_shows_them(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("luna-monai ")


def test_help_names_the_values_of_the_configuration(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for line in ("candidates per batch (default: 32,", "or null for no cache (default: data-"):
        assert line in text


def test_debug_shows_the_traceback(tmp_path, capsys):
    arguments = ["--dataset-dir", tmp_path / "nowhere", "--cache-dir", "null"]
    assert run_app(LunaTrainingApp, [*arguments, "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("luna-monai train: error: ")


def test_a_closed_pipe_gives_no_tracebacks(luna16_mini):
    command = [sys.executable, "-m", "luna_monai", "doctor", "--dataset-dir", str(luna16_mini)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_no_torch_before_paths_are_checked():
    code = """
import sys
from luna_monai.apps.cli import main
for arguments in (["predict", "nowhere.nii.gz", "--output", "a.csv"], ["evaluate", "nowhere"], ["export", "nowhere",
                  "--format", "onnx"], ["train", "--dataset-dir", "nowhere"], ["train", "--config", "nowhere"]):
    assert main(arguments) == 1, arguments
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 5
    assert done.stderr.count("nowhere") >= 5
