"""Work by several processes, each with a GPU or some cores: torchrun and DistributedDataParallel."""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Sized
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.data import DistributedSampler
from torch.nn.parallel import DistributedDataParallel

from luna_monai.errors import LunaError

logger = logging.getLogger(__name__)

#: How long processes wait for those that are still filling the cache or classifying candidates.
_WAIT = timedelta(days=2)


class Launched(NamedTuple):
    """What torchrun has told this process about itself.

    Attributes:
        rank: its number among all processes, from 0.
        world_size: number of processes, on all machines.
        local_rank: its number among those of this machine, from 0.
        local_world_size: number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launched() -> Launched:
    """Read which of the processes this one is from torchrun's variables; without torchrun it is the only one.

    Reference:
        https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    if not torch.distributed.is_torchelastic_launched():
        return Launched()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return Launched(*(int(os.environ[name]) for name in names))


def local_device() -> torch.device:
    """Choose where this process computes: each on a GPU of its own, or all on the CPU.

    Returns:
        The GPU with the number of this process on its machine, or the CPU where there are no GPUs.
    """
    return torch.device("cuda", launched().local_rank) if torch.cuda.is_available() else torch.device("cpu")


def start_processes(device: torch.device) -> None:
    """Join the other processes that torchrun has started: by NCCL between GPUs, by gloo between CPUs.

    All but the first log warnings and errors only. Without torchrun nothing happens.

    Args:
        device: where this process computes.
    """
    if not torch.distributed.is_torchelastic_launched() or torch.distributed.is_initialized():
        return
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    # Made now: a connected process notices at once when another machine's process ends; torchrun does not tell.
    _patient_group(torch.distributed.group.WORLD)
    process = launched()
    if process.rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("%d processes, %d of them on this machine", process.world_size, process.local_world_size)


def stop_processes() -> None:
    """Leave the other processes, once all of them are done; without others nothing happens."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _patient_group.cache_clear()
        idist.sync()  # ignite would continue to ask the group that it has seen


def wait_for_all() -> None:
    """Wait until all processes have come here, for days if need be; without others nothing happens."""
    if torch.distributed.is_initialized():
        # Between processes with GPUs barrier() would take a tensor on the GPU, even in this group.
        torch.distributed.all_reduce(torch.zeros(1), group=_patient_group(torch.distributed.group.WORLD))


def gather_objects(value: Any) -> list[Any] | None:
    """Collect a value of each process in the first one, which waits for days if need be.

    Args:
        value: anything that can be pickled.

    Returns:
        In the first process the values of all, in the order of their ranks; None in the others. Without others the
        value alone.
    """
    if not torch.distributed.is_initialized():
        return [value]
    process = launched()
    values = [None] * process.world_size if process.rank == 0 else None
    torch.distributed.gather_object(value, values, group=_patient_group(torch.distributed.group.WORLD))
    return values


@lru_cache(maxsize=1)
def _patient_group(world: Any) -> Any:
    # A group of its own, on the host: the other one gives up on a process that is silent for some minutes, and lets
    # the GPU spin while it waits.
    return torch.distributed.new_group(backend="gloo", timeout=_WAIT)


def share_of_batch(batch_size: int) -> int:
    """Divide a batch among the processes, so that a training batch means the same for any number of them.

    Args:
        batch_size: candidates in a batch of all processes together.

    Returns:
        Candidates in the batch of each.

    Raises:
        LunaError: when it cannot be divided evenly.
    """
    processes = launched().world_size
    if batch_size % processes:
        raise LunaError(f"batch_size {batch_size} must be a multiple of the number of processes, {processes}")
    return batch_size // processes


def share_of_cores(workers: int) -> int:
    """Divide the worker processes of a machine among those of its processes that torchrun has started.

    Args:
        workers: number for the machine; 0 works without.

    Returns:
        Number for each; at least 1, unless there are to be none.
    """
    return min(workers, max(workers // launched().local_world_size, 1))


def data_parallel(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Let all processes train one network with ``DistributedDataParallel``, which averages their gradients.

    On GPUs batch normalization takes the statistics of all processes (``torch.nn.SyncBatchNorm``). On CPUs, for which
    torch has no such module, each process normalizes by its own part of the batch, and the running statistics are those
    of the first one.

    Args:
        network: with the same weights in each process; its batch normalizations are replaced on GPUs.
        device: where it runs.

    Returns:
        The network to train with; the one that was given stays the one to evaluate and to save. Without other
        processes it is the same.
    """
    if not torch.distributed.is_initialized():
        return network
    gpu = device.type == "cuda"
    if gpu:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # Of one input channel there are several sets of strides for the same layout, and the warning takes them for two.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    # On GPUs the buffers are the same everywhere already.
    names = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before PyTorch 2.13
    options: dict[str, Any] = {"device_ids": [device] if gpu else None, sync: not gpu}
    return DistributedDataParallel(network, **options)


@dataclass(eq=False)
class BroadcastBuffers:
    """Gives all processes the first one's running statistics before each validation; see :func:`data_parallel`.

    Args:
        network: the network.
    """

    network: torch.nn.Module

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._broadcast)

    def _broadcast(self) -> None:
        if torch.distributed.is_initialized():
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)


@dataclass(eq=False)
class SeedEachEpoch:
    """Seeds the generators of Python, NumPy and torch at the start of each epoch, by seed, epoch and process.

    A resumed run then draws the numbers that it would have drawn, and processes draw different ones.

    Args:
        seed: the seed of the run.
    """

    seed: int

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        sequence = np.random.SeedSequence([self.seed, engine.state.epoch, idist.get_rank()])
        manual_seed(int(sequence.generate_state(1)[0]))


def evaluation_sampler(dataset: Sized, name: str = "validation candidates") -> DistributedSampler:
    """Divide samples that are evaluated among the processes: each is read by exactly one of them.

    Samplers for training repeat samples to give each process the same number, which would count some twice here.

    Args:
        dataset: the samples.
        name: what they are, for people.

    Returns:
        A sampler for this process's part; parts differ by one sample at most.

    Raises:
        LunaError: when there are fewer samples than processes.
    """
    number, process = len(dataset), launched()
    if number < process.world_size:
        raise LunaError(f"{name}: {number}, fewer than the {process.world_size} processes; start {number} at most")
    return DistributedSampler(
        dataset, even_divisible=False, num_replicas=process.world_size, rank=process.rank, shuffle=False
    )
