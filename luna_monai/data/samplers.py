"""Which candidates an epoch is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.utils.data import DistributedSampler

from luna_monai.data.datasets import CandidateDataset
from luna_monai.errors import LunaError


class BalancedSampler(DistributedSampler):
    """Draws nodules and non-nodules in a fixed ratio (the idea of chapter 12.4, where the classes alternate).

    An epoch holds every nodule, as often as its length and the ratio ask for and each as often as any other but for
    one, and a fresh draw of the non-nodules, without repetition while there are enough of them. The order is random.
    Draw and order depend on the seed and the epoch alone, so they are the same for any number of workers, and after a
    resume.

    Args:
        dataset: the candidates.
        ratio: non-nodules for each nodule.
        samples_per_epoch: length of an epoch; as many as the dataset has candidates when None.
        num_replicas: processes that train together.
        rank: the number of this one, from 0.
        seed: of draw and order.

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
        self.positives = torch.nonzero(label == 1).flatten()
        self.negatives = torch.nonzero(label == 0).flatten()
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
        drawn = torch.cat(
            [
                _draw(self.positives, self.positives_per_epoch, generator),
                _draw(self.negatives, self.negatives_per_epoch, generator),
            ]
        )
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        # Ranks take the same number of samples each; as DistributedSampler does, the first ones fill up.
        drawn = torch.cat([drawn, drawn[: self.total_size - len(drawn)]])
        return iter(drawn[self.rank :: self.num_replicas].tolist())


def _draw(values: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    rounds = math.ceil(count / len(values))
    return torch.cat([values[torch.randperm(len(values), generator=generator)] for _ in range(rounds)])[:count]
