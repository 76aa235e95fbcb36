"""Records, counts and the choice of the precision over two processes."""

from datetime import timedelta
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.multiprocessing
from ignite.engine import Engine

from luna_monai.training import AutocastInferer, BroadcastBuffers
from luna_monai.training.metrics import gather_records


def work(rank, folder):
    """Three samples in one process and two in the other, one of them the same."""
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # what waits for ever is an error in a minute
    )
    rows = torch.tensor([[0, 2, 4], [1, 0, -1]][rank])
    rows = rows[rows >= 0]
    records = gather_records([(rows, rows % 2, rows / 10 + rank / 100, rows + 0.5)])
    records.to_pickle(f"{folder}/{rank}.pkl")
    one_sided = [(rows, rows % 2, rows / 10, rows + 0.5)] if rank == 1 else []
    gather_records(one_sided).to_pickle(f"{folder}/{rank}-empty.pkl")

    # The second processor has no bfloat16.
    with mock.patch("torch.cpu.get_capabilities", create=True, return_value={"amx_bf16": rank == 0}):
        pd.Series([AutocastInferer("cpu").state_dict()["dtype"]]).to_pickle(f"{folder}/{rank}-precision.pkl")
    network = torch.nn.BatchNorm3d(1)
    network.running_mean.fill_(rank + 1)
    evaluator = Engine(lambda *_: None)
    BroadcastBuffers(network).attach(evaluator)
    evaluator.run([0])
    pd.Series([network.running_mean.item()]).to_pickle(f"{folder}/{rank}-mean.pkl")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the work in two processes, and return the folder with their results."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="forkserver")
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_gets_all_records(folder, rank):
    frame = pd.read_pickle(folder / f"{rank}.pkl")
    assert frame["row"].tolist() == [0, 2, 4, 1, 0]
    assert frame["class"].tolist() == [0, 0, 0, 1, 0]
    assert frame["probability"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.11, 0.01])
    assert frame["loss"].tolist() == [0.5, 2.5, 4.5, 1.5, 0.5]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_samples(folder, rank):
    assert pd.read_pickle(folder / f"{rank}-empty.pkl")["row"].tolist() == [1, 0]


def test_the_precision_is_supported_by_all_processes(folder):
    assert [pd.read_pickle(folder / f"{rank}-precision.pkl").item() for rank in (0, 1)] == ["float32"] * 2


def test_running_statistics_are_those_of_the_first_process(folder):
    assert [pd.read_pickle(folder / f"{rank}-mean.pkl").item() for rank in (0, 1)] == [1, 1]
