"""The weights that the bundle ships are the ones that its metadata and model card speak of, and find real nodules."""

import json

import pytest
import torch

from luna_monai.apps import LunaEvaluateApp
from luna_monai.files import sha256_of
from luna_monai.networks import LunaModel


@pytest.fixture
def weights(repository):
    """Return the file of weights."""
    return repository / "bundle" / "models" / "model.pt"


@pytest.fixture
def metadata(repository):
    """Return the bundle's metadata."""
    return json.loads((repository / "bundle" / "configs" / "metadata.json").read_text())


def test_weights_are_those_of_metadata_and_model_card(repository, weights, metadata):
    digest = sha256_of(weights)
    assert metadata["operating_points"]["weights_sha256"] == digest
    assert digest in (repository / "bundle" / "docs" / "model_card.md").read_text()


def test_weights_fit_the_network_and_nothing_else_is_in_the_file(weights):
    assert weights.stat().st_size <= 2_000_000
    state = torch.load(weights, weights_only=True)
    network = LunaModel()
    network.load_state_dict(state, strict=True)
    for name, value in state.items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
        assert torch.isfinite(value).all(), name


def test_weights_find_the_real_nodules_of_the_metadata(weights, metadata, luna16_mini, tmp_path):
    LunaEvaluateApp(
        [
            *(weights, "--dataset-dir", luna16_mini, "--all-scans"),
            *("--cache-dir", tmp_path / "cache", "--output-dir", tmp_path / "results", "precache_workers=0"),
        ]
    ).main()
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())["metrics"]
    assert metrics["roc_auc"] >= 0.97
    assert metrics["sensitivity/8"] == 1
    for name in ("roc_auc", "average_precision", "cpm", "sensitivity/8"):
        claimed = metadata["eval_metrics"][f"two_luna16_scans_{name.replace('/', '_at_')}"]
        assert metrics[name] == pytest.approx(claimed, abs=2e-3), name


def test_operating_points_are_usable(metadata):
    points = metadata["operating_points"]
    assert 0.5 < points["calibration"]["temperature"] < 2
    for name in ("sensitivity", "false_positives_per_scan"):
        thresholds = [point["threshold"] for point in points["thresholds"][name]]
        assert thresholds == sorted(thresholds, reverse=True)
        assert all(0 < threshold < 1 for threshold in thresholds)
        # A finding that is shown is not called impossible.
        assert all(point["calibrated_threshold"] > 1e-3 for point in points["thresholds"][name])
    # On scans that it was not fitted on, the calibration helps.
    assert points["expected_calibration_error"]["calibrated"] < points["expected_calibration_error"]["raw"]
