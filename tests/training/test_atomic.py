"""Tests of luna_monai.training.atomic."""

import pandas as pd
import pytest
import torch

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.training.atomic import save_table, save_tensors


def test_replaces_a_file_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "file"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("save", "content"), [(save_tensors, torch.zeros(10_000)), (save_table, pd.DataFrame({"a": range(10_000)}))]
)
def test_full_disk_leaves_the_old_file(tmp_path, limit_file_size, save, content):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with limit_file_size(4096), pytest.raises(LunaError, match=r"file: cannot be written \(File too large\)"):
        save(path, content)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_table_with_undefined_values(tmp_path):
    save_table(tmp_path / "table.csv", pd.DataFrame({"a": [1, 2], "b": [0.1, float("nan")]}))
    assert (tmp_path / "table.csv").read_text() == "a,b\n1,0.1\n2,\n"
