"""The bundle gives the book's numbers, and leaves the run folder that is promised."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from luna_monai.networks import LunaModel


@pytest.fixture(scope="module")
def book_run(request, luna16_mini, golden, shared_data, tmp_path_factory, repository):
    """Validate the book's weights on all rows of luna16_mini, through the bundle's own evaluator."""
    from monai.bundle import ConfigWorkflow

    folder = repository / "bundle" / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(folder / "train.yaml"), str(repository / "configs" / "book_ch11.yaml")],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        dataset_dir=str(luna16_mini),
        cache_dir=str(tmp_path_factory.mktemp("cache")),
        output_dir=str(tmp_path_factory.mktemp("output")),
    )
    workflow.initialize()
    state = torch.load(shared_data / "book" / "luna_model_2020.state", map_location="cpu", weights_only=True)
    workflow.parser.get_parsed_content("network_def").load_state_dict(state["model_state"], strict=True)
    return workflow


def evaluate(workflow):
    evaluator = workflow.evaluator
    evaluator.run(1)
    return evaluator.state


def test_golden_validation(book_run, golden):
    state = evaluate(book_run)
    records = state.records
    is_validation = golden["is_validation"]
    np.testing.assert_array_equal(records["row"], np.flatnonzero(is_validation))
    np.testing.assert_allclose(records["probability"], golden["probabilities"][is_validation, 1], atol=1e-5)
    np.testing.assert_allclose(records["loss"], golden["loss"][is_validation], atol=1e-4)
    assert (state.metrics["correct_count/neg"], state.metrics["count/neg"]) == (60, 61)
    assert (state.metrics["correct_count/pos"], state.metrics["count/pos"]) == (1, 1)


def test_golden_logits_of_all_samples(book_run, golden):
    dataset = book_run.parser.get_parsed_content("train#dataset")
    prepare_batch = book_run.parser.get_parsed_content("validate#prepare_batch")
    network = book_run.parser.get_parsed_content("network").eval()
    logits, rows = [], []
    for part in (dataset, book_run.parser.get_parsed_content("validate#dataset")):
        for start in range(0, len(part), 64):
            batch = part.read(range(start, min(start + 64, len(part))))
            image, _ = prepare_batch(batch, "cpu")
            with torch.no_grad():
                logits.append(network(image).numpy())
            rows.append(batch["row"].numpy())
    order = np.argsort(np.concatenate(rows))
    actual = np.concatenate(logits)[order]
    np.testing.assert_allclose(actual, golden["logits"], atol=1e-4)
    correct = (actual.argmax(1) == golden["is_nodule"])[~golden["is_validation"]]
    is_nodule = golden["is_nodule"][~golden["is_validation"]]
    assert (correct[~is_nodule].sum(), correct[is_nodule].sum()) == (546, 5)


def test_all_properties_are_there(make_workflow, make_dataset, tmp_path):
    workflow = make_workflow(dataset_dir=str(make_dataset()), output_dir=str(tmp_path / "run"), max_epochs=1)
    workflow.initialize()
    assert workflow.check_properties() == []
    for name in ("bundle_root", "device", "dataset_dir", "network_def", "train_inferer", "train_handlers", "evaluator"):
        assert getattr(workflow, name) is not None
    for key in ("validate#dataset", "validate#inferer", "validate#handlers", "validate#evaluator", "run", "precache"):
        assert key in workflow.parser
    assert not (tmp_path / "run").exists()


def test_run_folder(small_run, tmp_path):
    small_run(max_epochs=2, comment="mine", tb_prefix="p2ch11")
    run = tmp_path / "run"
    LunaModel().load_state_dict(torch.load(run / "model.pt", weights_only=True), strict=True)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] == 2
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics[["epoch", "split"]].to_numpy().tolist() == [[1, "trn"], [1, "val"], [2, "trn"], [2, "val"]]
    assert metrics["samples"].tolist() == [16, 16, 32, 32]
    table = pd.read_csv(tmp_path / "luna" / "candidates.csv")
    predictions = pd.read_csv(run / "predictions" / "val.csv")
    assert predictions["seriesuid"].unique().tolist() == ["1.2.3.0"]
    assert predictions["class"].sum() == table.loc[table["seriesuid"] == "1.2.3.0", "class"].sum()
    assert predictions["probability"].between(0, 1).all()
    folders = sorted(path.name.split("-", 3)[-1] for path in (run / "runs" / "p2ch11").iterdir())
    assert [name.split("-")[-1] for name in folders] == ["mine", "mine"]
    assert not list(run.rglob("*.tmp"))


def test_recorded_configuration_runs_again(small_run, tmp_path, repository):
    from monai.bundle import ConfigWorkflow

    small_run(fold=1, optimizer={"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 1e-5})
    recorded = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(recorded.read_text())
    assert (config["fold"], config["optimizer"]["lr"]) == (1, 1e-5)
    first = pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")
    again = ConfigWorkflow(
        config_file=str(recorded),
        meta_file=str(repository / "bundle" / "configs" / "metadata.json"),
        logging_file=False,
        run_id="training",
        output_dir=str(tmp_path / "again"),
    )
    again.initialize()
    again.run()
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "again" / "predictions" / "val.csv"))


def test_validation_has_no_gradients_and_eval_mode(small_run, monkeypatch):
    seen = []
    forward = LunaModel.forward

    def spy(self, image):
        seen.append((self.training, torch.is_grad_enabled()))
        return forward(self, image)

    monkeypatch.setattr(LunaModel, "forward", spy)
    small_run()
    # The first one tries the network with an empty crop.
    assert seen == [(False, False), (True, True), (True, True), (False, False)]


def test_val_interval(small_run, tmp_path):
    small_run(max_epochs=3, val_interval=2)
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics[["epoch", "split"]].to_numpy().tolist() == [
        [1, "trn"],
        [2, "trn"],
        [2, "val"],
        [3, "trn"],
        [3, "val"],
    ]


def test_validation_without_nodules_is_undefined_and_the_lowest_loss_wins(small_run, make_dataset, tmp_path, caplog):
    folder = make_dataset(scans=2, candidates=16)
    table = pd.read_csv(folder / "candidates.csv")
    table.loc[table["seriesuid"] == "1.2.3.0", "class"] = 0
    table.to_csv(folder / "candidates.csv", index=False)
    with caplog.at_level("INFO"):
        small_run(dataset_dir=str(folder), max_epochs=3)
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    validation = metrics[metrics["split"] == "val"].reset_index(drop=True)
    assert validation[["roc_auc", "loss/pos", "correct/pos"]].isna().all().all()
    best = validation["loss/all"].idxmin() + 1
    assert f"Best epoch: {best} of 3" in caplog.text
    predictions = pd.read_csv(tmp_path / "run" / "predictions" / "val.csv")
    assert predictions["loss"].mean() == pytest.approx(validation["loss/all"].min(), rel=1e-4)
    assert "n/a" in caplog.text


def test_book_mode_has_the_settings_of_the_book(make_workflow, make_dataset, tmp_path):
    workflow = make_workflow("book_ch11.yaml", dataset_dir=str(make_dataset(scans=2, candidates=15)))
    workflow.initialize()
    get = workflow.parser.get_parsed_content
    optimizer = get("optimizer")
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.001, 0.99)
    assert get("validate#dataset").row.tolist() == [0, 10, 20]
    loader = get("train#dataloader")
    assert loader.batch_size == 32
    assert next(iter(loader))["row"].tolist() == [row for row in range(30) if row % 10]
    assert get("train#prepare_batch").augmentation is None


def test_book_mode_computes_the_metric_that_decides(small_run, tmp_path):
    small_run("book_ch11.yaml", key_metric="cpm")
    assert pd.read_csv(tmp_path / "run" / "metrics.csv").query("split == 'val'")["cpm"].notna().all()


@pytest.mark.parametrize("overlay", ["book_ch11.yaml", "demo.yaml"])
def test_every_key_of_a_configuration_has_a_comment(repository, overlay):
    bundle = repository / "bundle" / "configs"
    for path in (bundle / "train.yaml", bundle / "multi_gpu_train.yaml", repository / "configs" / overlay):
        for line in path.read_text().splitlines():
            is_value = line and not line.startswith((" ", "#", "-")) and not line.endswith(":")
            assert not is_value or " #" in line, f"{path.name}: {line}"
