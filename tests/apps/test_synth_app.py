"""``luna-monai synth``."""

import pandas as pd

from luna_monai.apps import LunaSynthApp
from luna_monai.apps.cli import run_app


def test_writes_what_was_asked_for(tmp_path):
    argv = [tmp_path / "luna", "--scans", 2, "--candidates-per-scan", 15, "--nodules-per-scan", 2.5]
    assert LunaSynthApp([*argv, "--seed", 4, "--in-plane", 72, "--slices", 40]).main() == 0
    candidates = pd.read_csv(tmp_path / "luna" / "candidates.csv")
    assert candidates.groupby("seriesuid").size().tolist() == [15, 15]
    subsets = [path.parent.name for path in sorted(tmp_path.rglob("*.mhd"))]
    assert sorted(subsets) == ["subset0", "subset1"]  # training needs two


def test_bad_argument_is_one_line(tmp_path, capsys):
    assert run_app(LunaSynthApp, [tmp_path / "luna", "--scans", -1]) == 1
    captured = capsys.readouterr()
    assert captured.err == "luna-monai synth: error: scans must be at least 1, found -1\n"


def test_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run_app(LunaSynthApp, [tmp_path]) == 1
    assert "not empty" in capsys.readouterr().err
