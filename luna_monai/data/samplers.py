"""Sampling of the candidates of an epoch."""

import math
from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from luna_monai.data.datasets import CandidateDataset
from luna_monai.errors import LunaError


class BalancedSampler(DistributedSampler):
    """Samples nodules and non-nodules in a fixed ratio (as in chapter 12.4, where the classes alternate).

    Nodules are repeated to reach the ratio; their numbers of repetitions differ by at most one. Non-nodules are drawn
    anew in each epoch, without repetition if there are enough. The order is random. Samples and order depend only on
    the seed and the epoch, so they are the same for any number of workers and after a resume.

    Args:
        dataset: the candidates.
        ratio: number of non-nodules per nodule.
        samples_per_epoch: length of an epoch; None uses the number of candidates in the dataset.
        num_replicas: number of processes that train together.
        rank: rank of this process, from 0.
        seed: random seed.

    Raises:
        LunaError: when one of the classes is missing.
    """

    def __init__(
        self,
        dataset: CandidateDataset,
        ratio: float = 1.0,
        samples_per_epoch: int | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
    ) -> None:
        label = torch.as_tensor(dataset.label)
        self.negatives, self.positives = (torch.nonzero(label == value).flatten() for value in (0, 1))
        if len(self.positives) == 0 or len(self.negatives) == 0:
            found = f"{len(self.positives)} nodules and {len(self.negatives)} non-nodules"
            raise LunaError(f"a balanced epoch needs both classes, found {found} to train on; choose another fold")
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        samples = len(dataset) if samples_per_epoch is None else samples_per_epoch
        self.positives_per_epoch = max(round(samples / (1 + ratio)), 1)
        self.negatives_per_epoch = max(samples - self.positives_per_epoch, 1)
        self.num_samples = math.ceil((self.positives_per_epoch + self.negatives_per_epoch) / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        parts = ((self.positives, self.positives_per_epoch), (self.negatives, self.negatives_per_epoch))
        drawn = torch.cat([_draw(*part, generator) for part in parts])
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        # All ranks get the same number of samples: as in DistributedSampler, the first samples are repeated at the end.
        drawn = drawn.repeat(math.ceil(self.total_size / len(drawn)))[: self.total_size]
        return iter(drawn[self.rank :: self.num_replicas].tolist())


def _draw(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    rounds = math.ceil(count / len(values))
    return torch.cat([values[torch.randperm(len(values), generator=generator)] for _ in range(rounds)])[:count]
