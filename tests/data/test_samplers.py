"""A balanced epoch holds what it promises, the same for the same seed and epoch, however it is read."""

from types import SimpleNamespace

import numpy as np
import pytest
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from torch.utils.data import Dataset, DistributedSampler

from luna_monai.data import BalancedSampler
from luna_monai.errors import LunaError

POSITIVES = 7
NEGATIVES = 93


class Candidates(Dataset):
    """Stands for a CandidateDataset: 7 nodules among 100 candidates; an item is its own index."""

    def __init__(self):
        self.label = np.zeros(POSITIVES + NEGATIVES, dtype=int)
        self.label[::14][:POSITIVES] = 1

    def __len__(self):
        return len(self.label)

    def __getitem__(self, index):
        return index


@pytest.fixture
def dataset():
    return Candidates()


def epoch(sampler, number=1):
    sampler.set_epoch(number)
    return list(sampler)


def counts(dataset, drawn):
    times = np.bincount(drawn, minlength=len(dataset))
    return times[dataset.label == 1], times[dataset.label == 0]


@pytest.mark.parametrize(
    ("ratio", "samples", "positives", "negatives"),
    [
        (1.0, None, 50, 50),
        (3.0, None, 25, 75),
        (1.0, 28, 14, 14),
        (0.5, 60, 40, 20),
        (13.0, 14, 1, 13),
        (1, 1000, 500, 500),
    ],
)
def test_ratio_and_length(dataset, ratio, samples, positives, negatives):
    sampler = BalancedSampler(dataset, ratio=ratio, samples_per_epoch=samples)
    drawn = epoch(sampler)
    assert len(drawn) == len(sampler) == positives + negatives
    of_positives, of_negatives = counts(dataset, drawn)
    assert (of_positives.sum(), of_negatives.sum()) == (positives, negatives)
    # As often as each other, but for one.
    assert np.ptp(of_positives) <= 1
    assert np.ptp(of_negatives) <= 1


def test_every_nodule_is_there_and_negatives_are_drawn_anew(dataset):
    sampler = BalancedSampler(dataset, samples_per_epoch=28)
    seen = set()
    for number in range(1, 41):
        drawn = epoch(sampler, number)
        of_positives, of_negatives = counts(dataset, drawn)
        assert (of_positives == 2).all()
        assert of_negatives.max() == 1
        seen |= set(np.flatnonzero(np.bincount(drawn, minlength=len(dataset)) * (dataset.label == 0)))
    assert len(seen) == NEGATIVES


def test_order_mixes_the_classes(dataset):
    drawn = epoch(BalancedSampler(dataset, samples_per_epoch=1000))
    halves = np.array_split(dataset.label[drawn], 2)
    assert all(0.4 < half.mean() < 0.6 for half in halves)


def test_seed_and_epoch_decide(dataset):
    first = epoch(BalancedSampler(dataset, seed=3), 5)
    assert epoch(BalancedSampler(dataset, seed=3), 5) == first
    others = [epoch(BalancedSampler(dataset, seed=seed), number) for seed, number in ((3, 6), (4, 5), (5, 3))]
    assert all(other != first for other in others)


@pytest.mark.parametrize(("samples", "ranks"), [(28, 2), (29, 2), (100, 3), (2, 8)])
def test_ranks_share_an_epoch(dataset, samples, ranks):
    whole = epoch(BalancedSampler(dataset, samples_per_epoch=samples, seed=1))
    samplers = [
        BalancedSampler(dataset, samples_per_epoch=samples, seed=1, num_replicas=ranks, rank=rank)
        for rank in range(ranks)
    ]
    assert all(isinstance(sampler, DistributedSampler) for sampler in samplers)
    parts = [epoch(sampler) for sampler in samplers]
    length = -(-samples // ranks)
    assert [len(part) for part in parts] == [len(sampler) for sampler in samplers] == [length] * ranks
    # Read in turns, they are the epoch of one process, the first samples again at the end where it does not divide.
    together = [index for turn in zip(*parts, strict=True) for index in turn]
    assert together == (whole * ranks)[: length * ranks]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(dataset, workers):
    sampler = BalancedSampler(dataset, samples_per_epoch=28, seed=1)
    loader = DataLoader(dataset, batch_size=8, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    for number in (1, 2):
        expected = epoch(BalancedSampler(dataset, samples_per_epoch=28, seed=1), number)
        sampler.set_epoch(number)
        assert [index for batch in loader for index in batch.tolist()] == expected


def test_engines_tell_it_the_epoch(dataset):
    """MONAI's trainers do so for a DistributedSampler, at each epoch's start."""
    sampler = BalancedSampler(dataset, samples_per_epoch=8, seed=1)
    seen = []
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=DataLoader(dataset, batch_size=4, sampler=sampler),
        network=None,
        optimizer=None,
        loss_function=None,
        iteration_update=lambda engine, batch: seen.extend(batch.tolist()),
    )
    trainer.run()
    assert seen == [index for number in (1, 2, 3) for index in epoch(BalancedSampler(dataset, 1, 8, seed=1), number)]


def test_both_classes_are_needed():
    with pytest.raises(LunaError, match="needs both classes, found 0 nodules and 5 non-nodules"):
        BalancedSampler(SimpleNamespace(label=np.zeros(5, dtype=int)))
