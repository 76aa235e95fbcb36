"""How fast an epoch was, and whether the loader or the network was the limit."""

from __future__ import annotations

import logging
import time
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Timer
from monai.engines import Trainer
from monai.utils import CommonKeys

from luna_monai.data.timing import memory_in_use
from luna_monai.training.samples import TrainingSamples
from luna_monai.training.tensorboard import TensorBoardRun

logger = logging.getLogger(__name__)


class ThroughputHandler:
    """Logs samples per second, the share of the time that went into waiting for data, and memory, each epoch.

    An epoch's time is from its start to this handler, so list it after what belongs to the epoch, such as its metrics,
    and before the validation. Where the loader is the limit, a sentence says so and what to change. A GPU works in the
    background: there, only that waiting counts after which the GPU has nothing left to do.

    Args:
        split: ``"trn"`` or ``"val"``.
        run: TensorBoard's folders; nothing is written there when None.
        training_samples: counts the samples, TensorBoard's x-axis; needed with ``run``.
        limit: share of an epoch's time, from 0 to 1, that may go into waiting for data before the sentence comes.

    Attributes:
        epochs: what was measured, a dict for each epoch: ``samples_per_second``, of all processes together;
            ``data_wait``, a percentage, the mean of all processes; ``memory_mb``, of the first process and its
            workers, without mapped files; and on GPUs ``device_memory_mb``, the highest of the epoch.
    """

    def __init__(
        self,
        split: str = "trn",
        run: TensorBoardRun | None = None,
        training_samples: TrainingSamples | None = None,
        limit: float = 0.05,
    ) -> None:
        if run is not None and training_samples is None:
            raise ValueError("ThroughputHandler: run needs training_samples, which are TensorBoard's x-axis")
        self.split = split
        self.run = run
        self.training_samples = training_samples
        self.limit = limit
        self.epochs: list[dict[str, float]] = []
        self._epoch = Timer()
        self._asked = self._waited = 0.0
        self._samples = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        if self.training_samples is not None and isinstance(engine, Trainer):
            self.training_samples.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _start(self, engine: Engine) -> None:
        self._samples, self._waited = 0, 0.0
        if self._on_gpu(engine):
            torch.cuda.reset_peak_memory_stats(engine.state.device)
        self._epoch.reset()

    def _ask(self) -> None:
        self._asked = time.perf_counter()

    def _get(self, engine: Engine) -> None:
        if not self._on_gpu(engine) or torch.cuda.current_stream(engine.state.device).query():
            self._waited += time.perf_counter() - self._asked

    def _count(self, engine: Engine) -> None:
        self._samples += len(engine.state.output[CommonKeys.LABEL])

    def _log(self, engine: Engine) -> None:
        if self._on_gpu(engine):
            torch.cuda.synchronize(engine.state.device)
        seconds = self._epoch.value()
        samples = idist.all_reduce(self._samples)
        wait = idist.all_reduce(self._waited / seconds) / idist.get_world_size()
        found = {"samples_per_second": samples / seconds, "data_wait": 100 * wait, "memory_mb": memory_in_use() / 1e6}
        if self._on_gpu(engine):
            found["device_memory_mb"] = torch.cuda.max_memory_allocated(engine.state.device) / 1e6
        self.epochs.append(found)
        if idist.get_rank() != 0:
            return
        device = f", {found['device_memory_mb']:,.0f} MB on the device" if self._on_gpu(engine) else ""
        logger.info(
            "E%d %-8s %.1f samples/s, %.1f%% of the time waiting for data, %s MB of memory%s",
            engine.state.epoch, self.split, found["samples_per_second"], found["data_wait"],
            f"{found['memory_mb']:,.0f}", device,
        )  # fmt: skip
        if wait > self.limit:
            logger.info("The loader is the limit: %s", advice(engine.state.dataloader, self._on_gpu(engine)))
        if self.run is not None and self.training_samples is not None:
            for name, value in found.items():
                self.run.writer(self.split).add_scalar(f"throughput/{name}", value, self.training_samples.count)

    @staticmethod
    def _on_gpu(engine: Engine) -> bool:
        device = getattr(engine.state, "device", None)
        return device is not None and torch.device(device).type == "cuda"


def advice(loader: Any, on_gpu: bool = False) -> str:
    """Say what makes a loader faster.

    Args:
        loader: a ``DataLoader`` over a :class:`~luna_monai.data.CandidateDataset`.
        on_gpu: whether the network runs on a GPU.
    """
    workers = getattr(loader, "num_workers", 0)
    cache = getattr(getattr(loader, "dataset", None), "cache", None)
    if cache is not None and cache.cache_dir is None:
        return "set cache_dir, so that candidates are cut only once"
    if on_gpu:
        more = f"num_workers to more than {workers}" if workers else "num_workers to 4 or more"
        return f"set cache_on_device to true where the candidates fit into the GPU's memory, else {more}"
    ahead = "" if workers else "set num_workers to 2, which reads ahead; "
    return f"{ahead}the cache may be on a slow disk, or larger than memory; 'luna-monai bench data' times it"
