"""What the default configuration does beyond the book's, and that the book's does none of it."""

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luna_monai.data import BalancedSampler
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.training import FROC_METRICS
from luna_monai.transforms import RandAugmentCandidates


def scalars(folder, split):
    (place,) = folder.glob(f"runs/*/*-{split}_cls-*")
    return EventAccumulator(str(place)).Reload().Tags()["scalars"]


def test_default(small_run, tmp_path, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    get = small_run(max_epochs=2).parser.get_parsed_content
    assert isinstance(get("train#prepare_batch").augmentation, RandAugmentCandidates)
    assert get("validate#prepare_batch").augmentation is None
    assert isinstance(get("train#sampler"), BalancedSampler)
    assert get("optimizer").param_groups[0]["lr"] == pytest.approx(0.001 * 0.95**2)

    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv").set_index("split")
    assert metrics.loc["val", list(FROC_METRICS)].notna().all(axis=None)
    assert metrics.loc["trn", list(FROC_METRICS)].isna().all(axis=None)
    assert set(FROC_METRICS) <= set(scalars(tmp_path / "run", "val"))
    assert not set(FROC_METRICS) & set(scalars(tmp_path / "run", "trn"))
    assert "CPM, sensitivity" in caplog.text
    table = [record.getMessage().split() for record in caplog.records if record.name == "luna_monai.data.splits"]
    assert table[-2:] == [["training", "1", "16", "2"], ["validation", "1", "16", "2"]]


def test_book_mode_has_no_balancing_and_augmentation(small_run, tmp_path, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    get = small_run("book_ch11.yaml").parser.get_parsed_content
    assert get("train#prepare_batch").augmentation is None
    assert list(get("train#sampler")) == list(range(len(get("train#dataset"))))
    assert get("lr_scheduler") is None
    assert get("optimizer").param_groups[0]["lr"] == 0.001
    assert "cpm" not in pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert "CPM" not in caplog.text
    leaks = [record.getMessage() for record in caplog.records if "leaks" in record.getMessage()]
    assert leaks == [
        "This split leaks: 2 of 2 validation scans have candidates in the training part too, so the validation "
        "metrics are too optimistic"
    ]


def test_a_scan_in_both_splits_stops_the_run(small_run, tmp_path):
    leaking = {"_target_": "luna_monai.data.split_by_stride", "candidates": "@candidates", "val_stride": 10}
    with (
        pytest.raises(LunaError, match="2 of 2 validation scans have candidates in the training part too"),
        unwrapped_luna_errors(),
    ):
        small_run(split=leaking)
    assert not (tmp_path / "run").exists()


def test_early_stopping(small_run, tmp_path):
    # The number of non-nodules never grows, so no epoch is better than the first.
    small_run(max_epochs=5, patience=2, key_metric="count/neg")
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"].max() == 3
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 3


def test_other_schedule(small_run):
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 1, "gamma": 0.1}
    get = small_run(max_epochs=2, lr_scheduler=schedule).parser.get_parsed_content
    assert get("optimizer").param_groups[0]["lr"] == pytest.approx(0.001 * 0.1**2)


def test_compiled(small_run, tmp_path, monkeypatch):
    # Inductor takes a minute to compile; what it is given, and how the engines run it, is the same for any backend.
    compile = torch.compile
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or compile(network, backend="eager"))
    get = small_run(compile=True).parser.get_parsed_content
    assert compiled == [get("network"), get("network")]
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert saved.keys() == get("network_def").state_dict().keys()
