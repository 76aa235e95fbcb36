"""Fixtures for tests that run the bundle in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow


@pytest.fixture(autouse=True)
def _leave_process_as_it_was(monkeypatch) -> Iterator[None]:
    import sys

    # A key written twice in a config is a mistake; MONAI only complains when asked to.
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    hook, path = sys.excepthook, list(sys.path)
    yield
    sys.excepthook, sys.path[:] = hook, path


@pytest.fixture
def make_workflow(repository: Path) -> Callable[..., ConfigWorkflow]:
    """Return a function that loads the bundle's train.yaml with overlays and overrides."""

    def make(*overlays: str, run_id: str = "training", **overrides: Any) -> ConfigWorkflow:
        folder = repository / "bundle" / "configs"
        return ConfigWorkflow(
            config_file=[str(folder / "train.yaml"), *(str(repository / "configs" / name) for name in overlays)],
            meta_file=str(folder / "metadata.json"),
            logging_file=False,
            run_id=run_id,
            workflow_type="train",
            **overrides,
        )

    return make


@pytest.fixture
def small_run(
    make_workflow: Callable[..., ConfigWorkflow], make_dataset: Callable[..., Path], tmp_path: Path
) -> Callable[..., ConfigWorkflow]:
    """Return a function that trains on one small scan and validates on another, into ``tmp_path / "run"``."""

    def run(*overlays: str, **overrides: Any) -> ConfigWorkflow:
        settings = {
            "dataset_dir": str(make_dataset(scans=2, candidates=16)) if "dataset_dir" not in overrides else None,
            "cache_dir": str(tmp_path / "cache"),
            "output_dir": str(tmp_path / "run"),
            "batch_size": 8,
            "max_epochs": 1,
            "precache_workers": 0,
        }
        workflow = make_workflow(*overlays, **(settings | overrides))
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    return run
