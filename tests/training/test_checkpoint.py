"""Tests of luna_monai.training.checkpoint."""

import re

import pytest
import torch

from luna_monai.errors import LunaError
from luna_monai.files import write_tensors
from luna_monai.training.checkpoint import restore_checkpoint, save_checkpoint


def save(folder, epoch):
    save_checkpoint(folder, {"epoch": epoch, "settings": {}}, {"layer": torch.nn.Linear(2, 1)})


def restore(folder):
    return restore_checkpoint(folder, {"layer": torch.nn.Linear(2, 1)}, {})["epoch"]


def test_keeps_the_previous_checkpoint(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]
    assert restore(tmp_path) == 3
    (tmp_path / "checkpoint.pt").unlink()
    assert restore(tmp_path) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "weights", "part"])
def test_damaged_checkpoint(tmp_path, caplog, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint"}.get(damage)
    if content is not None:
        path.write_bytes(content)
    elif damage == "weights":
        torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    else:
        torch.save(torch.load(path, weights_only=True) | {"state": {"layer": {"weight": None}}}, path)
    assert restore(tmp_path) == 1
    (record,) = caplog.records
    caplog.clear()
    assert record.getMessage().startswith(f"Skipping damaged checkpoint: {path} (")
    assert "\n" not in record.getMessage()
    save(tmp_path, 3)  # keeps the previous checkpoint, not the damaged one
    path.write_bytes(b"")
    assert restore(tmp_path) == 1
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(LunaError, match=rf"cannot resume from {re.escape(str(path))} \(.*\) or .*start without resume"):
        restore(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"epoch": 1, "state": Code()}, tmp_path / "checkpoint.pt")
    with pytest.raises(LunaError, match="cannot resume from"):
        restore(tmp_path)
    assert capsys.readouterr().out == ""


def test_full_disk_leaves_the_old_file(tmp_path, limit_file_size):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with limit_file_size(4096), pytest.raises(LunaError, match=r"file: cannot be written \(File too large\)"):
        write_tensors(path, torch.zeros(10_000))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
