"""A whole tiny run with all handlers: what is logged, written and resumed."""

import logging
import multiprocessing
import os
import re
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import METRIC_NAMES
from luna_monai.tables import EXACTLY
from luna_monai.training import (
    CandidateMetrics,
    ConsoleHandler,
    LrSchedule,
    ProgressHandler,
    RunFolder,
    RunState,
    SeedEachEpoch,
    TensorBoardHandler,
    Validation,
    run_folder,
)


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


class Run:
    """A trainer and an evaluator with all handlers, wired as a configuration would."""

    def __init__(self, make_network, make_trainer, make_evaluator, candidates, output_dir, **options):
        defaults = {"val_interval": 1, "resume": False, "shuffle": False, "max_epochs": 2, "validation": None}
        options = defaults | {"comment": "dwlpt", "config": {"seed": 1}, "scheduler": halving} | options
        validation = candidates[1::2] if options["validation"] is None else options["validation"]
        self.network = make_network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        scheduler = options["scheduler"](self.optimizer)
        self.state = state = RunState(output_dir, tb_prefix="p2ch11", comment=options["comment"])
        state.names["time"] = "2018-02-28_20.52.54"
        self.evaluator = make_evaluator(
            validation,
            self.network,
            key_val_metric={"roc_auc": CandidateMetrics()},
            val_handlers=[
                ProgressHandler("E{epoch} Validation "),
                ConsoleHandler("val"),
                TensorBoardHandler(state, "val"),
                state,
            ],
        )
        self.trainer = make_trainer(
            candidates[::2],
            self.network,
            optimizer=self.optimizer,
            shuffle=options["shuffle"],
            max_epochs=options["max_epochs"],
            key_train_metric={"roc_auc": CandidateMetrics()},
            train_handlers=[
                SeedEachEpoch(options["config"]["seed"]),
                ProgressHandler("E{epoch} Training"),
                ConsoleHandler("trn"),
                TensorBoardHandler(state, "trn"),
                Validation(options["val_interval"], self.evaluator),
                LrSchedule(scheduler),
                RunFolder(
                    state,
                    self.network,
                    self.optimizer,
                    candidates,
                    self.evaluator,
                    options["config"],
                    lr_scheduler=scheduler,
                    resume=options["resume"],
                ),
            ],
        )


@pytest.fixture
def make_run(make_network, make_trainer, make_evaluator, candidates):
    """Return a function that makes runs."""

    def make(output_dir, **options):
        return Run(make_network, make_trainer, make_evaluator, candidates, output_dir, **options)

    return make


def read_events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def test_run_folder(make_run, candidates, tmp_path):
    run = make_run(tmp_path)
    run.trainer.run()

    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert list(metrics.columns) == ["epoch", "split", "samples", *METRIC_NAMES]
    assert metrics["split"].tolist() == ["trn", "val"] * 2
    assert metrics["epoch"].tolist() == [1, 1, 2, 2]
    assert metrics["samples"].tolist() == [24, 24, 48, 48]
    assert metrics["loss/all"].iloc[3] == pytest.approx(run.evaluator.state.metrics["loss/all"], rel=1e-14)

    predictions = pd.read_csv(tmp_path / "predictions" / "val.csv", **EXACTLY)
    assert list(predictions.columns) == [
        *("row", "seriesuid", "coordX", "coordY", "coordZ", "class", "diameter_mm", "probability", "loss")
    ]
    assert predictions["row"].tolist() == list(range(1, 48, 2))
    expected = candidates.loc[predictions["row"]].reset_index(drop=True)
    same = ["seriesuid", "coordX", "coordY", "coordZ", "class", "diameter_mm"]
    pd.testing.assert_frame_equal(predictions[same], expected[same], check_exact=True)
    assert len(pd.read_csv(tmp_path / "predictions" / "trn.csv")) == 24

    assert not list(tmp_path.rglob("*.tmp"))
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]


def test_model_and_predictions_are_those_of_the_best_epoch(make_run, make_network, tmp_path):
    run = make_run(tmp_path, max_epochs=4)
    run.trainer.run()
    best = run.state.best_epoch
    metrics = pd.read_csv(tmp_path / "metrics.csv").query("split == 'val'").set_index("epoch")
    assert best == metrics["roc_auc"].idxmax()

    predictions = pd.read_csv(tmp_path / "predictions" / "val.csv")
    assert predictions["loss"].mean() == pytest.approx(metrics.loc[best, "loss/all"])
    network = make_network().eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    data = run.evaluator.data_loader.dataset
    probability = network(torch.from_numpy(data.images)).softmax(1)[:, 1].detach().numpy()
    np.testing.assert_allclose(probability, predictions["probability"], rtol=1e-5)


def test_tensorboard(make_run, tmp_path):
    run = make_run(tmp_path)
    run.trainer.run()
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    folders = sorted(path.name for path in (tmp_path / "runs" / "p2ch11").iterdir())
    assert folders == ["2018-02-28_20.52.54-trn_cls-dwlpt", "2018-02-28_20.52.54-val_cls-dwlpt"]
    for folder, split in zip(folders, ("trn", "val"), strict=True):
        events = read_events(tmp_path / "runs" / "p2ch11" / folder)
        rows = metrics[metrics["split"] == split]
        for name in ("loss/all", "loss/neg", "loss/pos", "correct/all", "correct/neg", "correct/pos", "roc_auc"):
            scalars = events.Scalars(name)
            assert [scalar.step for scalar in scalars] == [24, 48]
            np.testing.assert_allclose([scalar.value for scalar in scalars], rows[name], rtol=1e-6)
        assert [event.step for event in events.Tensors("pr")] == [24, 48]
        assert [event.step for event in events.Histograms("is_neg")] == [24, 48]
        histogram = events.Histograms("is_neg")[-1].histogram_value
        records = (run.trainer if split == "trn" else run.evaluator).state.records
        unsure = records[(records["class"] == 0) & (records["probability"] > 0.01)]
        assert histogram.num == len(unsure)
        np.testing.assert_allclose(np.diff(histogram.bucket_limit), 1 / 50, rtol=1e-6)


def test_console_lines(make_run, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="luna_monai")
    run = make_run(tmp_path)
    run.trainer.run()
    text = "\n".join(record.getMessage() for record in caplog.records)
    for split in ("trn", "val"):
        assert re.search(rf"^E1 {split}      \d\.\d{{4}} loss, [ \d]{{3}}\.\d% correct, $", text, re.M)
        assert re.search(rf"^E1 {split}_neg  \d\.\d{{4}} loss, [ \d]{{3}}\.\d% correct \(\d+ of 20\)$", text, re.M)
        assert re.search(rf"^E1 {split}_pos  \d\.\d{{4}} loss, [ \d]{{3}}\.\d% correct \(\d of 4\)$", text, re.M)
    order = [text.index(part) for part in ("E1 Training ----/3, starting", "E1 trn ", "E1 Validation ", "E1 val ")]
    assert order == sorted(order)
    assert f"Best epoch: {run.state.best_epoch} of 2, " in text


def test_validation_with_one_class(make_run, candidates, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="luna_monai")
    negatives = candidates[candidates["class"] == 0]
    run = make_run(tmp_path, validation=negatives, max_epochs=3)
    run.trainer.run()
    metrics = pd.read_csv(tmp_path / "metrics.csv").query("split == 'val'").set_index("epoch")
    assert metrics["roc_auc"].isna().all()
    assert run.state.best_epoch == metrics["loss/all"].idxmin()
    assert ",," in (tmp_path / "metrics.csv").read_text()
    assert any(
        re.fullmatch(r"E1 val_pos     n/a loss,   n/a% correct \(0 of 0\)", record.getMessage())
        for record in caplog.records
    )


def test_epochs_without_validation(make_run, tmp_path):
    run = make_run(tmp_path, val_interval=2, max_epochs=3)
    run.trainer.run()
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert list(zip(metrics["epoch"], metrics["split"], strict=True)) == [
        (1, "trn"),
        (2, "trn"),
        (2, "val"),
        (3, "trn"),
        (3, "val"),
    ]
    assert run.state.best_epoch in (2, 3)


def test_diverged_training_keeps_the_last_model(make_run, tmp_path):
    run = make_run(tmp_path)
    with torch.no_grad():
        run.network[0].weight.fill_(float("nan"))
    run.trainer.run()
    assert run.state.best_epoch is None
    assert (tmp_path / "model.pt").is_file()
    assert not (tmp_path / "predictions").exists()
    assert pd.read_csv(tmp_path / "metrics.csv")["loss/all"].isna().all()


def test_crash_in_the_first_epoch_leaves_no_runs(make_run, tmp_path):
    run = make_run(tmp_path)
    run.trainer.data_loader.dataset.images = None
    with pytest.raises(TypeError):
        run.trainer.run()
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "checkpoint.pt").exists()


def test_crash_later_leaves_complete_files(make_run, tmp_path):
    run = make_run(tmp_path)
    run.evaluator.inferer = Failing(run.evaluator.inferer, calls=4)
    with pytest.raises(RuntimeError, match="broken"):
        run.trainer.run()
    folder = tmp_path / "runs" / "p2ch11"
    assert [event.step for event in read_events(next(folder.glob("*-trn_*"))).Scalars("loss/all")] == [24, 48]
    assert [event.step for event in read_events(next(folder.glob("*-val_*"))).Scalars("loss/all")] == [24]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 1


class Failing:
    """An inferer that raises an error after some calls."""

    def __init__(self, inferer, calls):
        self.inferer, self.calls = inferer, calls

    def __call__(self, *args):
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("broken")
        return self.inferer(*args)


def test_resume_is_bit_exact(make_run, tmp_path):
    whole = make_run(tmp_path / "whole", max_epochs=4, shuffle=True)
    whole.trainer.run()
    make_run(tmp_path / "parts", max_epochs=2, shuffle=True).trainer.run()
    resumed = make_run(tmp_path / "parts", max_epochs=4, shuffle=True, resume=True)
    resumed.trainer.run()

    for name, expected in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], expected), name
    for name in ("metrics.csv", "predictions/val.csv", "predictions/trn.csv"):
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    checkpoints = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "parts")]
    assert checkpoints[0]["iteration"] == checkpoints[1]["iteration"] == 12
    assert checkpoints[0]["state"]["optimizer"]["param_groups"] == checkpoints[1]["state"]["optimizer"]["param_groups"]
    assert not list((tmp_path / "parts").glob("previous-*"))


def test_resume_after_a_kill_between_two_files(make_run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    make_run(tmp_path / "whole", max_epochs=3).trainer.run()
    make_run(tmp_path / "parts", max_epochs=1).trainer.run()
    with monkeypatch.context() as patch:
        patch.setattr("luna_monai.training.run_folder.save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            make_run(tmp_path / "parts", max_epochs=3, resume=True).trainer.run()
    assert pd.read_csv(tmp_path / "parts" / "metrics.csv")["epoch"].max() == 2
    make_run(tmp_path / "parts", max_epochs=3, resume=True).trainer.run()
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()


def test_resume_from_the_previous_checkpoint(make_run, tmp_path, caplog):
    make_run(tmp_path / "whole", max_epochs=3).trainer.run()
    make_run(tmp_path / "parts", max_epochs=3).trainer.run()
    checkpoint = tmp_path / "parts" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    make_run(tmp_path / "parts", max_epochs=3, resume=True).trainer.run()
    assert f"Skipping damaged checkpoint: {checkpoint} (" in caplog.text
    assert (tmp_path / "whole" / "metrics.csv").read_text() == (tmp_path / "parts" / "metrics.csv").read_text()


def test_resume_after_metrics_of_numpy(make_run, tmp_path, caplog):
    run, extra = make_run(tmp_path), {"ours": np.float64(0.5), "number": np.int64(3)}
    run.evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(extra))
    run.trainer.run()
    make_run(tmp_path, max_epochs=3, resume=True).trainer.run()
    assert "damaged" not in caplog.text
    metrics = pd.read_csv(tmp_path / "metrics.csv").query("split == 'val'")
    assert metrics["ours"].iloc[0] == 0.5
    assert metrics["number"].iloc[0] == 3


def test_resume_of_a_finished_run_shows_its_results(make_run, tmp_path, caplog):
    make_run(tmp_path).trainer.run()
    caplog.set_level(logging.INFO, logger="luna_monai")
    before = (tmp_path / "metrics.csv").read_text()
    make_run(tmp_path, resume=True).trainer.run()
    assert "Best epoch: " in caplog.text
    assert (tmp_path / "metrics.csv").read_text() == before


def test_resume_without_a_checkpoint(make_run, tmp_path):
    with pytest.raises(LunaError, match=r"no checkpoint\.pt in this folder"):
        make_run(tmp_path, resume=True).trainer.run()


def test_resume_when_both_checkpoints_are_damaged(make_run, tmp_path):
    make_run(tmp_path).trainer.run()
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(LunaError, match=r"cannot resume from .*checkpoint\.pt \(.* or .*checkpoint-previous\.pt \("):
        make_run(tmp_path, resume=True).trainer.run()


def test_resume_with_another_network(make_run, tmp_path):
    make_run(tmp_path).trainer.run()
    run = make_run(tmp_path, resume=True)
    run.network.add_module("3", torch.nn.Linear(2, 2))
    with pytest.raises(LunaError, match=r"cannot resume from .*checkpoint\.pt \(Error\(s\) in loading state_dict"):
        run.trainer.run()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"seed": 1, "fold": 1},
            "cannot resume: fold was not set, is now 1; resume with the same settings, or ",
        ),
        ({"seed": 2}, "cannot resume: seed was 1, is now 2"),
        ({"seed": 1, "max_epochs": 9, "output_dir": "x", "train": {"handlers": []}}, None),
    ],
)
def test_resume_with_other_settings(make_run, tmp_path, config, message):
    make_run(tmp_path).trainer.run()
    run = make_run(tmp_path, resume=True, config=config)
    if message is None:
        run.trainer.run()
    else:
        with pytest.raises(LunaError, match=message):
            run.trainer.run()


def test_resume_with_another_schedule(make_run, tmp_path):
    def cosine(epochs):
        return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    def after_warm_up(epochs):
        warm_up = torch.optim.lr_scheduler.ConstantLR
        return lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer, [warm_up(optimizer), cosine(epochs)(optimizer)], milestones=[1]
        )

    for name, schedule in (("schedule#T_max", cosine), ("schedule#_schedulers#1#T_max", after_warm_up)):
        make_run(tmp_path, scheduler=schedule(2)).trainer.run()
        with pytest.raises(LunaError, match=f"cannot resume: {name} was 2, is now 4"):
            make_run(tmp_path, scheduler=schedule(4), resume=True).trainer.run()


def test_resume_with_other_candidates(make_run, candidates, tmp_path):
    make_run(tmp_path).trainer.run()
    candidates.loc[0, "coordX"] += 1
    with pytest.raises(LunaError, match=r"cannot resume: candidates \(the table on disk\) was \"48 rows, SHA-256 "):
        make_run(tmp_path, resume=True).trainer.run()


def test_resume_without_the_comment(make_run, tmp_path):
    make_run(tmp_path).trainer.run()
    make_run(tmp_path, max_epochs=3, resume=True, comment="train").trainer.run()
    assert len(list((tmp_path / "runs" / "p2ch11").iterdir())) == 2


def test_a_second_run_of_the_same_trainer_continues(make_run, tmp_path):
    run = make_run(tmp_path, max_epochs=1)
    run.trainer.run()
    for _ in range(2):  # as MONAI's federated client does
        run.trainer.state.max_epochs = run.trainer.state.epoch + 1
        run.trainer.run()
    assert pd.read_csv(tmp_path / "metrics.csv")["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    assert (tmp_path / "model.pt").is_file()
    assert not list(tmp_path.glob("previous-*"))


def test_a_schedule_that_needs_a_metric_is_refused_before_training(make_run, tmp_path):
    with pytest.raises(LunaError, match="lr_scheduler: ReduceLROnPlateau needs a metric"):
        make_run(tmp_path, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert not list(tmp_path.iterdir())


def test_a_schedule_that_cannot_step_is_one_line(make_run, tmp_path):
    run = make_run(tmp_path, scheduler=lambda it: torch.optim.lr_scheduler.StepLR(it, step_size=0))
    with pytest.raises(LunaError, match=r"lr_scheduler: StepLR: integer .*modulo by zero"):
        run.trainer.run()


def hold(folder, ready, end):
    """Train in this folder until told to end."""
    lock = run_folder._locked(folder / ".lock")
    ready.set()
    end.wait(60)
    os.close(lock)


def test_a_folder_in_use(make_run, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, end))
    other.start()
    assert ready.wait(60)
    with pytest.raises(LunaError, match=rf"in use by process {other.pid} on .*; wait for its end, or set another"):
        make_run(tmp_path).trainer.run()
    other.kill()
    other.join()
    make_run(tmp_path).trainer.run()  # the lock of a process that was killed is free


def test_earlier_runs_of_one_second_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "TIME_FORMAT", "now")
    for content in ("one", "two", "three"):
        (tmp_path / "model.pt").write_text(content)
        run_folder._set_aside_previous_run(tmp_path)
    assert sorted(path.read_text() for path in tmp_path.glob("previous-*/*")) == ["one", "three", "two"]


def test_temporary_files_of_killed_runs(make_run, tmp_path):
    (tmp_path / "predictions").mkdir()
    own = [tmp_path / ".model.pt.0123abcd.luna.tmp", tmp_path / "predictions" / ".val.csv.0123abcd.luna.tmp"]
    others = [tmp_path / ".notes.tmp", tmp_path / "mine" / ".model.pt.0123abcd.luna.tmp"]
    others[1].parent.mkdir()
    for path in own + others:
        path.touch()
        os.utime(path, (0, 0))
    make_run(tmp_path, max_epochs=1).trainer.run()
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in others)


def test_earlier_run_is_moved_aside(make_run, tmp_path, caplog):
    make_run(tmp_path).trainer.run()
    (tmp_path / "report.html").write_text("report")
    (tmp_path / "model.ts").write_text("export")
    (tmp_path / "evaluation").mkdir()
    old = {name: (tmp_path / name).read_bytes() for name in ("model.pt", "metrics.csv", "predictions/val.csv")}
    caplog.set_level(logging.INFO, logger="luna_monai")
    make_run(tmp_path, max_epochs=1).trainer.run()
    (previous,) = tmp_path.glob("previous-*")
    assert re.fullmatch(r"previous-\d{4}-\d\d-\d\d_\d\d\.\d\d\.\d\d", previous.name)
    assert {name: (previous / name).read_bytes() for name in old} == old
    assert (tmp_path / "runs").is_dir()
    assert (previous / "report.html").exists()
    assert (previous / "model.ts").exists()
    assert not (tmp_path / "evaluation").exists()
    assert len(pd.read_csv(tmp_path / "metrics.csv")) == 2
    assert sum("moved to" in record.getMessage() for record in caplog.records) == 1


def test_unwritable_folder(make_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LunaError, match=r"file/run: cannot be written \(Not a directory\)"):
        make_run(tmp_path / "file" / "run").trainer.run()


# tensorboard's writer thread ends with the exception that it hands to the run, and Python reports that too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk(make_run, tmp_path, limit_file_size):
    threads = set(threading.enumerate())
    make_run(tmp_path).trainer.run()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    run = make_run(tmp_path, max_epochs=3, resume=True)
    with limit_file_size(4096), pytest.raises(LunaError, match=r"cannot be written \(File too large\)"):
        run.trainer.run()
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
