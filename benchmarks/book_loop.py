"""The book's plain training loop (chapter 11), the baseline of the benchmarks.

It follows the book's description but is not a copy: each candidate is one float32 item, batches are collated from
items, the network computes in float32 with PyTorch's default memory layout, and losses and probabilities are stored in
a tensor of metrics that is evaluated after the epoch. Items are read from luna-monai's memory-mapped cache, which is
faster than the book's compressed ``diskcache``, so only the loop is compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from luna_monai.data import CandidateDataset
from luna_monai.networks import BookLunaModel

LABEL, PREDICTION, LOSS = range(3)


class BookItems(Dataset):
    """Candidates one at a time: float32 voxels, the label as two numbers, series and center."""

    def __init__(self, candidates: CandidateDataset) -> None:
        self.candidates = candidates

    def __len__(self) -> int:
        return len(self.candidates)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str, torch.Tensor]:
        item = self.candidates[index]
        label = torch.tensor([item["label"] == 0, item["label"] == 1], dtype=torch.long)
        return item["image"].to(torch.float32), label, item["seriesuid"], item["center_irc"]


class BookLoop:
    """Network, optimizer and loader as in the book.

    Args:
        candidates: candidates to train on or to evaluate.
        samples: candidates per epoch; they are repeated if there are fewer.
        batch_size: candidates per batch.
        num_workers: processes that load batches.
        device: device of the network.
    """

    def __init__(
        self,
        candidates: CandidateDataset,
        samples: int,
        batch_size: int = 32,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = BookLunaModel(split_size=None).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.99)
        items = BookItems(candidates)
        self.loader = DataLoader(
            Subset(items, [number % len(items) for number in range(samples)]),
            batch_size=batch_size,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            # A fork of a process that uses a GPU may crash.
            multiprocessing_context="forkserver" if num_workers else None,
            pin_memory=self.device.type == "cuda",
        )
        self.samples = samples

    def train(self) -> dict[str, float]:
        """Train for one epoch and return its metrics."""
        self.model.train()
        metrics = torch.zeros(3, self.samples, device=self.device)
        for number, batch in enumerate(self.loader):
            self.optimizer.zero_grad()
            self._loss(number, batch, metrics).backward()
            self.optimizer.step()
        return self._summary(metrics.to("cpu"))

    def validate(self) -> dict[str, float]:
        """Evaluate all samples and return the metrics."""
        self.model.eval()
        metrics = torch.zeros(3, self.samples, device=self.device)
        with torch.no_grad():
            for number, batch in enumerate(self.loader):
                self._loss(number, batch, metrics)
        return self._summary(metrics.to("cpu"))

    def _loss(self, number: int, batch: Iterable, metrics: torch.Tensor) -> torch.Tensor:
        image, label, _, _ = batch
        image = image.to(self.device, non_blocking=True)
        label = label.to(self.device, non_blocking=True)
        logits, probability = self.model(image)
        loss = torch.nn.functional.cross_entropy(logits, label[:, 1], reduction="none")
        first = number * (self.loader.batch_size or 1)
        place = slice(first, first + len(label))
        metrics[LABEL, place] = label[:, 1].detach().float()
        metrics[PREDICTION, place] = probability[:, 1].detach()
        metrics[LOSS, place] = loss.detach()
        return loss.mean()

    @staticmethod
    def _summary(metrics: torch.Tensor) -> dict[str, float]:
        positive, called = metrics[LABEL] > 0.5, metrics[PREDICTION] > 0.5
        found = {"loss/all": metrics[LOSS].mean(), "correct/all": 100 * (positive == called).float().mean()}
        for name, mask in (("neg", ~positive), ("pos", positive)):
            found[f"loss/{name}"] = metrics[LOSS, mask].mean()
            found[f"correct/{name}"] = 100 * (called[mask] == positive[mask]).float().mean()
        return {name: float(value) for name, value in found.items()}
