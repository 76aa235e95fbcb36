"""Fixtures for tests that run commands in this process."""

import pytest

from luna_monai.data import candidates
from luna_monai.scans import metaimage


@pytest.fixture
def count_reads(monkeypatch):
    """Names of the dataset folders that are listed and of the headers that are read, in order."""
    read = []

    def count(function):
        return lambda path: read.append(path.name) or function(path)

    monkeypatch.setattr(candidates, "find_scans", count(candidates.find_scans))
    monkeypatch.setattr(metaimage, "_read_fields", count(metaimage._read_fields))
    return read
