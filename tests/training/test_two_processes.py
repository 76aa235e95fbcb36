"""Records, counts and the choice of the precision over two processes."""

from datetime import timedelta
from unittest import mock

import pandas as pd
import pytest
import torch
import torch.multiprocessing
from ignite.engine import Engine

from luna_monai.metrics.records import CandidateRecords
from luna_monai.training import AutocastInferer, TrainingSamples, inferer


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
    for drop_duplicates in (False, True):
        records = CandidateRecords(drop_duplicates=drop_duplicates)
        records.append(rows, rows % 2, rows / 10 + rank / 100, rows + 0.5)
        records.to_frame().to_pickle(f"{folder}/{rank}-{drop_duplicates}.pkl")
    empty = CandidateRecords()
    if rank == 1:
        empty.append(rows, rows % 2, rows / 10, rows + 0.5)
    empty.to_frame().to_pickle(f"{folder}/{rank}-empty.pkl")

    samples = TrainingSamples()
    engine = Engine(lambda _, batch: {"label": torch.zeros(batch)})
    samples.attach(engine)
    engine.run([len(rows), 1], max_epochs=2)
    pd.Series([samples.count]).to_pickle(f"{folder}/{rank}-count.pkl")
    choices = {name: choose(**{key: value[rank] for key, value in case.items()}) for name, case in HARDWARE.items()}
    pd.Series(choices).to_pickle(f"{folder}/{rank}-precision.pkl")
    if rank == 0:
        # The other one has nothing to evaluate.
        alone = choose(able=True, float32=1, bfloat16=2, network=torch.nn.Linear(2, 2).eval())
        pd.Series([alone]).to_pickle(f"{folder}/evaluation.pkl")
    torch.distributed.destroy_process_group()


# What each of the two processes finds: whether it computes in bfloat16, and the seconds in either precision.
HARDWARE = {
    "the same": {"able": (True, True), "float32": (2, 2), "bfloat16": (1, 1)},
    "the second is slower, and slower in bfloat16": {"able": (True, True), "float32": (2, 4), "bfloat16": (1, 5)},
    "the first is slower, and faster in bfloat16": {"able": (True, True), "float32": (6, 2), "bfloat16": (5, 3)},
    "the first has no bfloat16": {"able": (False, True), "float32": (2, 2), "bfloat16": (1, 1)},
    "the second has no bfloat16": {"able": (True, False), "float32": (2, 2), "bfloat16": (1, 1)},
}


def choose(able, float32, bfloat16, network=None):
    """Let the precision be chosen as if this process's device were such."""
    with (
        mock.patch.object(inferer, "is_bfloat16_fast", return_value=able),
        mock.patch.object(inferer, "time_precisions", return_value={"float32": float32, "bfloat16": bfloat16}),
    ):
        chosen = AutocastInferer("cpu")
        chosen(torch.zeros(5, 2), network or torch.nn.Linear(2, 2))
    return chosen.state_dict()["dtype"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run the work in two processes and return the folder with what they got."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_has_all_records(folder, rank):
    frame = pd.read_pickle(folder / f"{rank}-False.pkl")
    assert frame["row"].tolist() == [0, 2, 4, 1, 0]
    assert frame["class"].tolist() == [0, 0, 0, 1, 0]
    assert frame["probability"].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.11, 0.01])
    assert frame["loss"].tolist() == [0.5, 2.5, 4.5, 1.5, 0.5]


@pytest.mark.parametrize("rank", [0, 1])
def test_padding_is_dropped(folder, rank):
    assert pd.read_pickle(folder / f"{rank}-True.pkl")["row"].tolist() == [0, 2, 4, 1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_without_samples(folder, rank):
    assert pd.read_pickle(folder / f"{rank}-empty.pkl")["row"].tolist() == [1, 0]


@pytest.mark.parametrize("rank", [0, 1])
def test_samples_of_all_processes_are_counted(folder, rank):
    assert pd.read_pickle(folder / f"{rank}-count.pkl").item() == 2 * (3 + 1 + 2 + 1)


def test_the_precision_is_that_of_all_processes(folder):
    """All take the same way and the same precision, which the slowest process or the least able one decides."""
    first, second = (pd.read_pickle(folder / f"{rank}-precision.pkl").tolist() for rank in (0, 1))
    assert first == second == ["bfloat16", "float32", "bfloat16", "float32", "float32"]


def test_a_process_that_evaluates_waits_for_no_other(folder):
    assert pd.read_pickle(folder / "evaluation.pkl").item() == "float32"
