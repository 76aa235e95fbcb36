"""What each of the processes that torchrun starts takes for its part."""

import logging
import multiprocessing
import os
import socket

import pytest
import torch

from luna_monai.errors import LunaError
from luna_monai.training.processes import (
    data_parallel,
    evaluation_sampler,
    gather_objects,
    launched,
    local_device,
    share_of_batch,
    share_of_cores,
    start_processes,
    stop_processes,
    wait_for_all,
)


@pytest.fixture
def torchrun(monkeypatch):
    """Return a function that sets torchrun's environment variables for this process."""

    def start(rank=0, world_size=1, local_rank=0, local_world_size=1):
        values = {
            "TORCHELASTIC_RUN_ID": "test",
            "RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_RANK": local_rank,
            "LOCAL_WORLD_SIZE": local_world_size,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_without_torchrun_there_is_one_process():
    assert (launched().rank, launched().world_size) == (0, 1)
    network = torch.nn.BatchNorm3d(1)
    start_processes(torch.device("cpu"))
    assert data_parallel(network, torch.device("cpu")) is network
    assert (share_of_batch(7), share_of_cores(5)) == (7, 5)
    wait_for_all()
    stop_processes()
    assert not torch.distributed.is_initialized()


def test_batch_size_is_divided_among_processes(torchrun):
    torchrun(world_size=4)
    assert share_of_batch(32) == 8
    with pytest.raises(LunaError, match="batch_size 30 must be a multiple of the number of processes, 4"):
        share_of_batch(30)


@pytest.mark.parametrize(("workers", "share"), [(0, 0), (1, 1), (3, 1), (8, 2), (9, 2)])
def test_the_cores_of_a_machine_are_divided(torchrun, workers, share):
    torchrun(world_size=8, local_world_size=4)
    assert share_of_cores(workers) == share


@pytest.mark.parametrize("samples", [3, 7, 9])
def test_each_validation_sample_is_read_once(torchrun, samples):
    parts = []
    for rank in range(3):
        torchrun(rank=rank, world_size=3)
        sampler = evaluation_sampler(range(samples))
        parts.append(list(sampler))
        assert len(sampler) == len(parts[-1])
    assert sorted(index for part in parts for index in part) == list(range(samples))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_validation_samples(torchrun):
    torchrun(world_size=3)
    with pytest.raises(LunaError, match="2 validation candidates for 3 processes; start at most 2 processes"):
        evaluation_sampler(range(2))
    with pytest.raises(LunaError, match="1 scans for 3 processes; start at most 1 processes"):
        evaluation_sampler(range(1), "scans")


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (4, "cuda:3")])
def test_each_process_has_a_gpu_of_its_own(torchrun, monkeypatch, gpus, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    torchrun(rank=11, world_size=16, local_rank=3, local_world_size=8)
    assert local_device() == torch.device(device)


def test_processes_with_gpus_use_nccl_and_their_own_gpu(torchrun, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("current", device)))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, device_id: calls.append((backend, device_id))
    )
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend, timeout: calls.append((backend, timeout.days)))
    torchrun(rank=3, world_size=16, local_rank=3, local_world_size=8)
    monkeypatch.setattr(logging.getLogger(), "level", logging.getLogger().level)
    start_processes(torch.device("cuda:3"))
    assert calls == [("current", torch.device("cuda:3")), ("nccl", torch.device("cuda:3")), ("gloo", 2)]


def test_processes_with_gpus_wait_on_the_host(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        torch.distributed.group.WORLD.bound_device_id = torch.device("cuda:0")  # as start_processes does
        wait_for_all()
        assert gather_objects("found") == ["found"]
    finally:
        stop_processes()


def leave(rank, environment, ended):
    """The second process ends without a word; the first one, which has been waiting for it, says so."""
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    start_processes(torch.device("cpu"))
    if rank == 0:
        try:
            gather_objects(None)
        except RuntimeError:
            ended.set()


def test_processes_do_not_wait_for_an_ended_process():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    context = multiprocessing.get_context("forkserver")
    ended = context.Event()
    processes = [context.Process(target=leave, args=(rank, environment, ended)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        assert ended.wait(60)
    finally:
        for process in processes:
            process.kill()
            process.join()
