"""Running the network in the precision that the processor is fast at."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import ignite.distributed as idist
import torch
from monai.inferers import SimpleInferer

logger = logging.getLogger(__name__)

_ROUNDS = 4  # of each precision when they are timed, in turn; the first one warms up
_SAMPLES = 4  # of a batch that they are timed on: a CPU is slow; a GPU takes all
_CLEARLY = 0.9  # of the time of bfloat16 is what float32 may take at most to be chosen: a hiccup must not change a run
_times: dict[tuple[Any, ...], dict[str, float]] = {}


def is_bfloat16_fast(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 rather than emulating it.

    Args:
        device: CPU or GPU.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def time_precisions(network: torch.nn.Module, inputs: torch.Tensor) -> dict[str, float]:
    """Time a network in float32 and in bfloat16, forward and, where it is in training mode, backward.

    The network, its statistics and the random number generators stay as they are. What was timed once is remembered
    as long as the process lives, so that trainings one after another get the same answer.

    Args:
        network: (N, 2) logits of ``inputs``.
        inputs: a batch, float32.

    Returns:
        Seconds for a batch, the shortest of several in turn, by precision; infinity where the memory of a GPU is too
        small.
    """
    if inputs.device.type == "cpu":
        inputs = inputs[:_SAMPLES]
    key = (inputs.device, torch.get_num_threads(), tuple(inputs.shape), network.training, str(network))
    if key not in _times:
        # The wrapper of DistributedDataParallel can't be copied, and would wait for the other processes.
        twin = copy.deepcopy(getattr(network, "module", network))
        seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
        with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
            for _ in range(_ROUNDS):
                for precision, times in seconds.items():
                    times.append(_time_step(twin, inputs, precision == "bfloat16"))
        _times[key] = {precision: min(times[1:]) for precision, times in seconds.items()}
    return _times[key]


def _time_step(network: torch.nn.Module, inputs: torch.Tensor, bfloat16: bool) -> float:
    _synchronize(inputs.device)
    start = time.perf_counter()
    autocast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16)
    try:
        with autocast, torch.set_grad_enabled(network.training):
            logits = network(inputs)
        if network.training:
            network.zero_grad()
            logits.float().sum().backward()
        _synchronize(inputs.device)
    except torch.OutOfMemoryError:
        if network.training and idist.get_world_size() > 1:
            raise  # the others are waiting for this one's statistics
        return math.inf
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under ``torch.autocast``: weights stay float32, and logits come back as float32.

    MONAI's ``amp`` option is for CUDA only, and scales losses even where the range of bfloat16 needs no scaling.
    On GPUs PyTorch lets cuDNN round float32 to TF32 (10 bits) in convolutions unless
    ``torch.backends.cudnn.allow_tf32`` is False.

    Args:
        device: where the network runs.
        precision: ``"bfloat16"``, ``"float32"``, or ``"auto"``: the faster of the two, timed on the first batch, and
            bfloat16 where they are about as fast. Processes that train together all take the one that is faster on
            the slowest of them, and float32 where one does not compute in bfloat16. A run that is resumed keeps what
            was chosen at its start.

    Attributes:
        dtype: what the network is run in; None as long as ``"auto"`` has seen no batch.

    Raises:
        ValueError: for another precision.
    """

    def __init__(self, device: str | torch.device, precision: str = "auto") -> None:
        super().__init__()
        if precision not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"precision must be auto, bfloat16 or float32, found {precision!r}")
        self.device = torch.device(device)
        self.precision = precision
        self.dtype: torch.dtype | None = None if precision == "auto" else getattr(torch, precision)
        if self.dtype is not None:
            logger.info("precision: %s on %s, as configured", precision, self.device)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the network's output for ``inputs``, as float32."""
        if self.dtype is None:
            self.dtype = self._choose(inputs, cast(torch.nn.Module, network))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()

    def state_dict(self) -> dict[str, str | None]:
        """Return the choice, for a checkpoint."""
        return {"dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch.")}

    def load_state_dict(self, state: Mapping[str, str | None]) -> None:
        """Take over a choice, unless the configuration has made another one."""
        if self.precision == "auto" and state["dtype"] is not None:
            self.dtype = getattr(torch, state["dtype"])
            logger.info("precision: %s, as before", state["dtype"])

    def _choose(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.dtype:
        # Processes that train together all come to each exchange here, whatever their devices, or one waits for ever.
        # One that evaluates may have no batch at all, so there each chooses for itself.
        able = [int(is_bfloat16_fast(self.device))]
        if network.training:
            able = idist.all_gather(able[0])
        unable = [rank for rank, value in enumerate(able) if not value]
        if unable:
            where = str(self.device) if len(able) == 1 else f"the device of process {unable[0] + 1} of {len(able)}"
            logger.info("precision: float32, for %s does not compute in bfloat16", where)
            return torch.float32
        seconds = time_precisions(network, inputs)
        if network.training:
            # All of them wait for the slowest one.
            seconds = {name: idist.all_reduce(value, "MAX") for name, value in seconds.items()}
        fastest = "float32" if seconds["float32"] < _CLEARLY * seconds["bfloat16"] else "bfloat16"
        listed = " and ".join(
            f"{1000 * value:.1f} ms in {name}" if value < math.inf else f"too much memory in {name}"
            for name, value in seconds.items()
        )
        logger.info("precision: %s on %s; a few samples took %s", fastest, self.device, listed)
        return getattr(torch, fastest)
