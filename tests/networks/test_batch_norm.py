"""Batch normalisation over two processes is batch normalisation of both batches."""

import pytest
import torch
import torch.multiprocessing
from torch import nn

from luna_monai.networks import AllReduceBatchNorm, LunaModel, synchronize_batch_norm

SIZES = (3, 5)  # samples in each process


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
        return network, torch.randn(sum(SIZES), 1, 4, 4, 4) * 300 - 800


def work(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    network, image = make()
    network = synchronize_batch_norm(network, torch.device("cpu"))
    output = network(image.split(SIZES)[rank])
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.save(
        {"output": output.detach(), "gradients": gradients, "state": network.state_dict()}, f"{folder}/{rank}.pt"
    )
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="fork")
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    network, image = make()
    output = network(image)
    output.square().sum().backward()
    torch.testing.assert_close(torch.cat([part["output"] for part in parts]), output)
    for name, parameter in network.named_parameters():
        total = sum(part["gradients"][name] for part in parts)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-3, atol=1e-3)
    for part in parts:
        assert part["state"].keys() == network.state_dict().keys()
        torch.testing.assert_close(part["state"]["1.running_mean"], network[1].running_mean)
        torch.testing.assert_close(part["state"]["1.running_var"], network[1].running_var)
        assert part["state"]["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("training", [True, False])
def test_alone_it_is_plain_batch_normalisation(training):
    plain, synchronized = LunaModel().train(training), LunaModel().train(training)
    synchronized.load_state_dict(plain.state_dict())
    parameters = list(synchronized.parameters())
    assert synchronize_batch_norm(synchronized, torch.device("cpu")) is synchronized
    assert isinstance(synchronized.tail_batchnorm, AllReduceBatchNorm)
    assert synchronized.tail_batchnorm.training is training
    assert all(new is old for new, old in zip(synchronized.parameters(), parameters, strict=True))
    image = torch.randn(2, 1, 32, 48, 48) * 300
    with torch.no_grad():
        assert torch.equal(synchronized(image), plain(image))
