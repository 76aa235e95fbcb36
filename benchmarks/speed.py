"""Timing of functions, and the roofline of a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def time_in_turn(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time several functions, each once per round, so that other jobs of the machine affect all alike.

    Args:
        work: functions by name; each must return only when its work is done.
        repeats: number of timed rounds, after one warm-up round.

    Returns:
        The seconds of each round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(repeats + 1):
        for name, go in work.items():
            start = time.perf_counter()
            go()
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Roofline:
    """The operations and memory traffic of one sample, and the limits of the device.

    Attributes:
        operations: floating-point operations of a sample in convolutions and matrix products; a multiplication and an
            addition count as two.
        bytes: bytes read and written for a sample if each layer reads its inputs from memory and writes its outputs.
        peak_operations: operations per second of the device in a large matrix product of the same precision.
        peak_bytes: bytes per second that the device reads and writes in a large copy.
    """

    operations: float
    bytes: float
    peak_operations: float
    peak_bytes: float

    @property
    def compute_bound(self) -> float:
        """Samples per second if only arithmetic took time."""
        return self.peak_operations / self.operations

    @property
    def memory_bound(self) -> float:
        """Samples per second if only memory access took time, without caches."""
        return self.peak_bytes / self.bytes

    def to_dict(self) -> dict[str, float]:
        """Return all figures for ``json.dumps``."""
        return {
            "operations_per_sample": self.operations,
            "bytes_per_sample": self.bytes,
            "peak_operations_per_second": self.peak_operations,
            "peak_bytes_per_second": self.peak_bytes,
            "compute_bound_samples_per_second": self.compute_bound,
            "memory_bound_samples_per_second": self.memory_bound,
        }

    def lines(self, rate: float) -> list[str]:
        """Compare ``rate``, in samples per second, with the limits of the device."""
        return [
            f"A sample takes {self.operations / 1e9:.2f} GFLOP and moves {self.bytes / 1e6:.0f} MB, layer by layer; "
            f"this device does {self.peak_operations / 1e9:,.0f} GFLOP/s in a matrix product and moves "
            f"{self.peak_bytes / 1e9:,.0f} GB/s in a copy.",
            f"The limits are {self.compute_bound:,.0f} samples/s by arithmetic and {self.memory_bound:,.0f} by memory "
            f"without caches: {rate:,.1f} samples/s are {100 * rate / self.compute_bound:.0f} % and "
            f"{100 * rate / self.memory_bound:.0f} % of these.",
        ]


def roofline(step: Callable[[], object], samples: int, device: torch.device, dtype: torch.dtype) -> Roofline:
    """Count the operations and bytes of a step, and measure the limits of the device.

    Args:
        step: runs the network on a batch, including the backward pass for training.
        samples: number of samples in the batch.
        device: device of the step.
        dtype: precision of convolutions and matrix products.
    """
    step()  # work of the first call only is not counted
    with FlopCounterMode(display=False) as operations, _ByteCounter() as moved:
        step()
    return Roofline(
        operations=operations.get_total_flops() / samples,
        bytes=moved.bytes / samples,
        peak_operations=peak_operations(device, dtype),
        peak_bytes=peak_bytes(device),
    )


def peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second in a large matrix product; the best of five.

    The product uses TF32 if cuDNN may use it for float32, which is PyTorch's default.
    """
    size = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        return 2 * size**3 / _shortest(lambda: left @ right, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def peak_bytes(device: torch.device) -> float:
    """Measure bytes read and written per second in a copy of 256 MB (1 GB on a GPU); the best of five."""
    source = torch.zeros(2**30 if device.type == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / _shortest(lambda: target.copy_(source), device)


def _shortest(work: Callable[[], object], device: torch.device) -> float:
    def finished() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return min(time_in_turn({"": finished}, 5)[""])


class _ByteCounter(TorchDispatchMode):
    """Adds up the sizes of tensors that operations read and write; views do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result
