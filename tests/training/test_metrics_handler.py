"""Tests of luna_monai.training.metrics on real engines."""

import pytest
import torch
from ignite.engine import Events

from luna_monai.errors import LunaError
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.training import CandidateMetrics, CheckLoss, RunState


def test_records_are_the_outputs_of_the_network(make_network, make_evaluator, candidates):
    network = make_network()
    evaluator = make_evaluator(candidates[::3], network, key_val_metric={"average_precision": CandidateMetrics()})
    evaluator.run(1)
    records, data = evaluator.state.records, evaluator.data_loader.dataset
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(data.images))
    label = torch.tensor(data.labels)
    assert records["row"].tolist() == data.rows.tolist()
    assert records["class"].tolist() == data.labels.tolist()
    assert records["probability"].tolist() == pytest.approx(logits.softmax(1)[:, 1].tolist())
    expected = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    assert records["loss"].tolist() == pytest.approx(expected.tolist())
    metrics = per_class_metrics(records["class"], records["probability"], records["loss"])
    assert evaluator.state.metrics == pytest.approx(metrics, rel=0, abs=0, nan_ok=True)
    assert evaluator.state.best_metric == evaluator.state.metrics["average_precision"]


def test_records_are_cleared_each_epoch(make_network, make_trainer, candidates):
    trainer = make_trainer(candidates, make_network(), max_epochs=3, key_train_metric={"roc_auc": CandidateMetrics()})
    trainer.run()
    assert len(trainer.state.records) == len(candidates)


def test_records_hold_no_graph(make_network, make_trainer, candidates):
    metrics = CandidateMetrics()
    trainer = make_trainer(candidates, make_network(), max_epochs=1, key_train_metric={"roc_auc": metrics})
    held = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: held.extend(metrics._batches[-1]))
    trainer.run()
    assert held
    assert not any(values.requires_grad for values in held)


def test_own_loss_function(make_network, make_evaluator, candidates):
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.0, 2.0]), reduction="none")
    evaluator = make_evaluator(
        candidates, make_network(), key_val_metric={"roc_auc": CandidateMetrics(loss_function=weighted)}
    )
    evaluator.run(1)
    assert evaluator.state.metrics["loss/neg"] == 0
    assert evaluator.state.metrics["loss/pos"] > 0


def test_loss_that_is_reduced(make_network, make_evaluator, candidates):
    metrics = CandidateMetrics(loss_function=torch.nn.CrossEntropyLoss())
    evaluator = make_evaluator(candidates, make_network(), key_val_metric={"roc_auc": metrics})
    with pytest.raises(LunaError, match="set loss_function#reduction=none"):
        evaluator.run(1)


def test_training_samples(make_network, make_trainer, candidates, tmp_path):
    state = RunState(tmp_path)
    metrics = {"roc_auc": CandidateMetrics()}
    make_trainer(candidates[:45], make_network(), max_epochs=3, key_train_metric=metrics, train_handlers=[state]).run()
    assert state.samples == 3 * 45  # the last batch of an epoch has 5


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_loss_that_is_not_finite(make_network, make_trainer, candidates, caplog, keep_going):
    network = make_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e30)
    check = CheckLoss(keep_going)
    trainer = make_trainer(candidates, network, max_epochs=3, optimizer=optimizer, train_handlers=[check])
    if keep_going:
        trainer.run()
        assert sum("the training loss is not finite" in message for message in caplog.messages) == 1
    else:
        with pytest.raises(LunaError, match=r"E1: the training loss is not finite in iteration 6; lower opt"):
            trainer.run()
