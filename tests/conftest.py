"""Fixtures for all tests."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with real data beside the project, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data are not at hand: no folder {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def luna16_mini(shared_data: Path) -> Path:
    """Return a LUNA16 dataset folder with two real scans."""
    return shared_data / "luna16_mini"
