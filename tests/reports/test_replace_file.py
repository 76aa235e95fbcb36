"""Files are replaced whole or not at all."""

import os

import pytest

from luna_monai.errors import LunaError
from luna_monai.reports.files import replace_file


def test_old_content_stays_until_the_new_is_complete(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    replace_file(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LunaError, match=r"report\.html: cannot be written \(No space left on device\)"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
