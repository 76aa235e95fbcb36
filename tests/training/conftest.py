"""Tiny engines: real MONAI trainers and evaluators on a few numbers instead of CTs."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch.utils.data import DataLoader, Dataset


class NumbersDataset(Dataset):
    """Samples of four numbers; a nodule's are larger."""

    def __init__(self, candidates: pd.DataFrame) -> None:
        self.rows = candidates.index.to_numpy()
        self.labels = candidates["class"].to_numpy()
        noise = np.random.default_rng(0).normal(size=(1000, 4))
        self.images = (noise[self.rows] + self.labels[:, None]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index]), "row": int(self.rows[index])}


@pytest.fixture
def candidates() -> pd.DataFrame:
    """Return a candidate table: 8 nodules, 40 others."""
    label = np.repeat([1, 0], [8, 40])
    return pd.DataFrame(
        {
            "seriesuid": [f"1.2.{row % 3}" for row in range(48)],
            "coordX": np.linspace(-100, 100, 48),
            "coordY": np.linspace(50, -50, 48),
            "coordZ": np.linspace(-300, -10, 48),
            "class": label,
            "diameter_mm": np.where(label == 1, 6.5, 0.0),
        }
    )


@pytest.fixture
def make_network() -> Callable[[], torch.nn.Module]:
    """Return a maker of networks (N, 4) -> (N, 2), always with the same weights."""

    def make() -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 2))

    return make


@pytest.fixture
def make_trainer() -> Callable[..., SupervisedTrainer]:
    """Return a maker of trainers."""

    def make(candidates: pd.DataFrame, network: torch.nn.Module, shuffle: bool = False, **kwargs: Any):
        options = {"max_epochs": 2, "optimizer": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)} | kwargs
        return SupervisedTrainer(
            device=torch.device("cpu"),
            train_data_loader=DataLoader(NumbersDataset(candidates), batch_size=8, shuffle=shuffle),
            network=network,
            loss_function=torch.nn.CrossEntropyLoss(),
            decollate=False,
            **options,
        )

    return make


@pytest.fixture
def make_evaluator() -> Callable[..., SupervisedEvaluator]:
    """Return a maker of evaluators."""

    def make(candidates: pd.DataFrame, network: torch.nn.Module, **kwargs: Any) -> SupervisedEvaluator:
        return SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=DataLoader(NumbersDataset(candidates), batch_size=8),
            network=network,
            decollate=False,
            **kwargs,
        )

    return make


@pytest.fixture
def limit_file_size() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Return a context manager in which no file can grow beyond a size, as on a full disk."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
