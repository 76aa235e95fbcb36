"""Tests of luna_monai.training.checkpoint."""

import io
import random

import numpy as np
import pytest
import torch

from luna_monai.errors import LunaError
from luna_monai.training.checkpoint import (
    random_state,
    read_checkpoint,
    save_checkpoint,
    set_random_state,
    unwrap,
)


def draw():
    # An odd number of normal values leaves one in NumPy's and one in Python's generator.
    return random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()  # noqa: NPY002


def test_random_states_survive_a_file():
    draw()
    buffer = io.BytesIO()
    torch.save(random_state(), buffer)
    expected = [draw(), draw()]
    buffer.seek(0)
    set_random_state(torch.load(buffer, weights_only=True))
    assert [draw(), draw()] == expected


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_gpus_go_on_where_they_were_however_many_there_are_now(monkeypatch, gpus):
    state = random_state() | {"cuda": ["first", "second"]}
    restored = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device: restored.update({device: value}))
    set_random_state(state)
    assert restored == dict(enumerate(["first", "second"][:gpus]))


def save(folder, epoch):
    save_checkpoint(folder, epoch, 10 * epoch, {"layer": torch.nn.Linear(2, 1)})


def test_keeps_the_previous_checkpoint(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-previous.pt", "checkpoint.pt"]
    assert read_checkpoint(tmp_path)["epoch"] == 3
    (tmp_path / "checkpoint.pt").unlink()
    assert read_checkpoint(tmp_path)["epoch"] == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "weights"])
def test_damaged_checkpoint(tmp_path, caplog, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"no checkpoint"}.get(damage)
    if content is None:
        torch.save(torch.nn.Linear(2, 1).state_dict(), path)
    else:
        path.write_bytes(content)
    assert read_checkpoint(tmp_path)["epoch"] == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{path} is damaged and not used (")
    assert "\n" not in record.getMessage()


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"epoch": 1, "iteration": 1, "random": {}, "state": Code()}, tmp_path / "checkpoint.pt")
    with pytest.raises(LunaError, match="nothing to resume from"):
        read_checkpoint(tmp_path)
    assert capsys.readouterr().out == ""


def test_unwrap():
    network = torch.nn.Linear(2, 1)
    assert unwrap(network) is network
    assert unwrap(torch.nn.DataParallel(network)) is network
    assert unwrap(torch.compile(network)) is network
