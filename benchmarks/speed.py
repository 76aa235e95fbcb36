"""How fast a network runs, and how fast it could."""

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
    """Time several pieces of work, each once in every round, so that what else the machine does falls on all alike.

    Args:
        work: what to do, by name; it must not return before it is done.
        repeats: how many rounds count. One more comes first and warms up.

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
    """What the work on one sample needs, and what the device can do.

    Attributes:
        operations: floating-point operations of a sample, in convolutions and matrix products; a multiplication and an
            addition are two.
        bytes: read and written for a sample, if each layer reads its inputs from memory and writes its outputs there.
        peak_operations: that the device does in a second, in a large matrix product of the same precision.
        peak_bytes: that it reads and writes in a second, in a large copy.
    """

    operations: float
    bytes: float
    peak_operations: float
    peak_bytes: float

    @property
    def compute_bound(self) -> float:
        """Samples a second, were there nothing but arithmetic."""
        return self.peak_operations / self.operations

    @property
    def memory_bound(self) -> float:
        """Samples a second, were there nothing but memory, and no cache."""
        return self.peak_bytes / self.bytes

    def to_dict(self) -> dict[str, float]:
        """Return all figures, for ``json.dumps``."""
        return {
            "operations_per_sample": self.operations,
            "bytes_per_sample": self.bytes,
            "peak_operations_per_second": self.peak_operations,
            "peak_bytes_per_second": self.peak_bytes,
            "compute_bound_samples_per_second": self.compute_bound,
            "memory_bound_samples_per_second": self.memory_bound,
        }

    def lines(self, rate: float) -> list[str]:
        """Say in words how far ``rate``, in samples a second, is from what the device can do."""
        return [
            f"A sample takes {self.operations / 1e9:.2f} GFLOP and moves {self.bytes / 1e6:.0f} MB, layer by layer; "
            f"this device does {self.peak_operations / 1e9:,.0f} GFLOP/s in a matrix product and moves "
            f"{self.peak_bytes / 1e9:,.0f} GB/s in a copy.",
            f"That is at most {self.compute_bound:,.0f} samples/s by arithmetic and {self.memory_bound:,.0f} by memory "
            f"where caches do not help: {rate:,.1f} are {100 * rate / self.compute_bound:.0f} % and "
            f"{100 * rate / self.memory_bound:.0f} % of it.",
        ]


def roofline(step: Callable[[], object], samples: int, device: torch.device, dtype: torch.dtype) -> Roofline:
    """Count what a step needs, and measure what the device can do.

    Args:
        step: runs the network on a batch, backward too where training is meant.
        samples: in that batch.
        device: where it runs.
        dtype: precision of its convolutions and matrix products.
    """
    step()  # what is made once only is not counted
    with FlopCounterMode(display=False) as operations, _ByteCounter() as moved:
        step()
    return Roofline(
        operations=operations.get_total_flops() / samples,
        bytes=moved.bytes / samples,
        peak_operations=peak_operations(device, dtype),
        peak_bytes=peak_bytes(device),
    )


def peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations a second, in a large matrix product; the best of five.

    Where cuDNN may round float32 to TF32, as PyTorch lets it do by default, so may the product.
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
    """Measure bytes read and written a second, in a copy of 256 MB, on a GPU of 1 GB; the best of five."""
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
    """Adds up the tensors that operations read and write; views cost nothing."""

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
