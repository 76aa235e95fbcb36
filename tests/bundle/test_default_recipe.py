"""What the default configuration does beyond the book's, and that the book's does none of it."""

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luna_monai.data import BalancedSampler
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.handlers import FROC_METRICS
from luna_monai.transforms import RandAugmentCandidates


@pytest.fixture
def run(make_workflow, make_dataset, tmp_path):
    def run(*overlays, **overrides):
        workflow = make_workflow(
            *overlays,
            **{
                "dataset_dir": str(make_dataset(scans=2, candidates=15)),
                "cache_dir": None,
                "output_dir": str(tmp_path / "run"),
                "batch_size": 8,
                "samples_per_epoch": 8,
                "max_epochs": 1,
                "precache_workers": 0,
                **overrides,
            },
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    return run


def scalars(folder, split):
    (place,) = folder.glob(f"runs/*/*-{split}_cls-*")
    return EventAccumulator(str(place)).Reload().Tags()["scalars"]


def test_default(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    get = run(max_epochs=2).parser.get_parsed_content
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
    assert sum("of the time waiting for data" in message for message in caplog.messages) == 2
    assert "throughput/samples_per_second" in scalars(tmp_path / "run", "trn")
    table = [record.getMessage().split() for record in caplog.records if record.name == "luna_monai.data.splits"]
    assert table[1:] == [["training", "1", "15", "2"], ["validation", "1", "15", "2"]]


def test_book_mode_has_none_of_it(run, tmp_path, caplog):
    caplog.set_level("INFO", logger="luna_monai")
    get = run("book_ch11.yaml").parser.get_parsed_content
    assert get("train#prepare_batch").augmentation is None
    assert list(get("train#sampler")) == list(range(len(get("train#dataset"))))
    assert get("lr_scheduler") is None
    assert get("optimizer").param_groups[0]["lr"] == 0.001
    assert "cpm" not in pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert "CPM" not in caplog.text
    assert "waiting for data" not in caplog.text
    leaks = [record.getMessage() for record in caplog.records if "leaks" in record.getMessage()]
    assert leaks == [
        "This split leaks: 2 of 2 validation scans have candidates in the training part too, so validation looks "
        "better than it is"
    ]


def test_a_scan_on_both_sides_stops_the_run(run, tmp_path):
    leaking = {"_target_": "luna_monai.data.split_by_stride", "candidates": "@candidates", "val_stride": 10}
    with (
        pytest.raises(LunaError, match="2 of 2 validation scans have candidates in the training part too"),
        unwrapped_luna_errors(),
    ):
        run(split=leaking)
    assert not (tmp_path / "run").exists()


def test_split_by_series(run, tmp_path):
    split = {"_target_": "luna_monai.data.split_by_series_stride", "candidates": "@candidates", "val_stride": 2}
    run(split=split)
    predictions = pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")
    assert predictions["seriesuid"].unique().tolist() == ["1.2.3.0"]


def test_early_stopping(run, tmp_path):
    # The number of non-nodules never grows, so no epoch is better than the first.
    run(max_epochs=5, patience=2, **{"best_epoch#key_metric": "count/neg"})
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"].max() == 3
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 3


def test_other_schedule(run):
    schedule = {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 1, "gamma": 0.1}
    get = run(max_epochs=2, lr_scheduler=schedule).parser.get_parsed_content
    assert get("optimizer").param_groups[0]["lr"] == pytest.approx(0.001 * 0.1**2)


def test_compiled_and_held_on_the_device(run, tmp_path, monkeypatch):
    # Inductor takes a minute to compile; what it is given, and how the engines run it, is the same for any backend.
    compile = torch.compile
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or compile(network, backend="eager"))
    get = run(compile=True, cache_on_device=True).parser.get_parsed_content
    assert compiled == [get("network"), get("network")]
    assert get("train#dataset").device == get("device")
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert saved.keys() == get("network_def").state_dict().keys()
