"""Distributed training and evaluation: processes of torchrun, and DistributedDataParallel."""

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

#: Longest time that processes wait for others that are still filling the cache or classifying candidates.
_TIMEOUT = timedelta(days=2)


class Launched(NamedTuple):
    """Rank of this process and number of processes, as torchrun sets them.

    Attributes:
        rank: number of this process among all processes, from 0.
        world_size: number of processes on all machines.
        local_rank: number of this process among those on its machine, from 0.
        local_world_size: number of processes on this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launched() -> Launched:
    """Read rank and number of processes from torchrun's environment variables.

    Returns:
        The values of this process; rank 0 of 1 process without torchrun.

    Reference:
        https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    if not torch.distributed.is_torchelastic_launched():
        return Launched()
    return Launched(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def local_device() -> torch.device:
    """Choose the device of this process.

    Returns:
        The GPU whose index is the local rank of this process, or the CPU if there are no GPUs.
    """
    return torch.device("cuda", launched().local_rank) if torch.cuda.is_available() else torch.device("cpu")


def start_processes(device: torch.device) -> None:
    """Initialize the process group of the processes that torchrun has started: NCCL for GPUs, gloo for CPUs.

    All processes but the first log only warnings and errors. Without torchrun, this function does nothing.

    Args:
        device: device of this process.
    """
    if not torch.distributed.is_torchelastic_launched() or torch.distributed.is_initialized():
        return
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpu else "gloo", device_id=device if gpu else None)
    # Connect now: connected processes notice at once when a process on another machine ends. torchrun does not.
    _cpu_group(torch.distributed.group.WORLD)
    process = launched()
    if process.rank > 0:
        logging.getLogger().setLevel(logging.WARNING)
    logger.info("%d processes, %d of them on this machine", process.world_size, process.local_world_size)


def stop_processes() -> None:
    """Destroy the process group, if there is one. Call it when all processes are done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        _cpu_group.cache_clear()
        idist.sync()  # else ignite continues to use the destroyed group


def wait_for_all() -> None:
    """Wait for up to two days until all processes have called this function. Does nothing for a single process."""
    if torch.distributed.is_initialized():
        # On machines with GPUs, barrier() uses a tensor on the GPU even in a gloo group.
        torch.distributed.all_reduce(torch.zeros(1), group=_cpu_group(torch.distributed.group.WORLD))


def gather_objects(value: Any) -> list[Any] | None:
    """Gather a value of each process in the first process, which waits for up to two days.

    Args:
        value: an object that can be pickled.

    Returns:
        In the first process, the values of all processes in the order of their ranks; None in the other processes.
        A single process gets a list of its own value.
    """
    if not torch.distributed.is_initialized():
        return [value]
    process = launched()
    values = [None] * process.world_size if process.rank == 0 else None
    torch.distributed.gather_object(value, values, group=_cpu_group(torch.distributed.group.WORLD))
    return values


@lru_cache(maxsize=1)
def _cpu_group(world: Any) -> Any:
    # The default group has a timeout of some minutes, and NCCL keeps the GPU busy while it waits.
    return torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)


def share_of_batch(batch_size: int) -> int:
    """Divide a batch among the processes, so that the total batch size does not depend on their number.

    Args:
        batch_size: number of candidates in a batch of all processes together.

    Returns:
        Number of candidates in the batch of each process.

    Raises:
        LunaError: if the batch cannot be divided evenly.
    """
    processes = launched().world_size
    if batch_size % processes:
        raise LunaError(f"batch_size {batch_size} must be a multiple of the number of processes, {processes}")
    return batch_size // processes


def share_of_cores(workers: int) -> int:
    """Divide the workers of a machine among the processes that torchrun has started on it.

    Args:
        workers: number of workers of the machine; 0 for no workers.

    Returns:
        Number of workers of each process: at least 1, unless ``workers`` is 0.
    """
    return min(workers, max(workers // launched().local_world_size, 1))


def data_parallel(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Wrap a network in ``DistributedDataParallel``, which averages the gradients of all processes.

    On GPUs, batch normalization uses the statistics of all processes (``torch.nn.SyncBatchNorm``). PyTorch has no such
    module for CPUs: each process normalizes by its own part of the batch, and the running statistics are those of the
    first process.

    Args:
        network: the network, with the same weights in each process. On GPUs its batch normalization layers are
            replaced.
        device: device of the network.

    Returns:
        The network to train. Evaluate and save ``network`` itself. For a single process both are the same object.
    """
    if not torch.distributed.is_initialized():
        return network
    gpu = device.type == "cuda"
    if gpu:
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    # With one input channel, different strides describe the same memory layout. The warning is wrong there.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    # On GPUs, SyncBatchNorm already keeps the buffers of all processes equal.
    names = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"  # before PyTorch 2.13
    options: dict[str, Any] = {"device_ids": [device] if gpu else None, sync: not gpu}
    return DistributedDataParallel(network, **options)


@dataclass(eq=False)
class BroadcastBuffers:
    """Copies the running statistics of the first process to all others before each validation.

    See :func:`data_parallel` for the reason.

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
    """Seeds the random generators of Python, NumPy and PyTorch at the start of each epoch.

    The seed of an epoch depends on ``seed``, the epoch and the rank. A resumed run thus draws the same random numbers
    as an uninterrupted run, and each process draws different ones.

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
    """Divide the samples of an evaluation among the processes: exactly one process reads each sample.

    Samplers for training repeat samples to give each process the same number. An evaluation would count them twice.

    Args:
        dataset: the samples.
        name: name of the samples in the error message.

    Returns:
        A sampler for the part of this process. The sizes of the parts differ by at most one sample.

    Raises:
        LunaError: if there are fewer samples than processes.
    """
    number, process = len(dataset), launched()
    if number < process.world_size:
        raise LunaError(f"{number} {name} for {process.world_size} processes; start at most {number} processes")
    return DistributedSampler(
        dataset, even_divisible=False, num_replicas=process.world_size, rank=process.rank, shuffle=False
    )
