"""Running the network in the precision that the processor is fast at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer

logger = logging.getLogger(__name__)


def is_bfloat16_fast(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16 rather than emulating it.

    Args:
        device: CPU or GPU.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under ``torch.autocast``: weights stay float32, and logits come back as float32.

    MONAI's ``amp`` option is for CUDA only, and scales losses even where the range of bfloat16 needs no scaling.

    Args:
        device: where the network runs.
        precision: ``"bfloat16"``, ``"float32"``, or ``"auto"``: bfloat16 where the device has it.

    Raises:
        ValueError: for another precision.
    """

    def __init__(self, device: str | torch.device, precision: str = "auto") -> None:
        super().__init__()
        if precision not in ("auto", "bfloat16", "float32"):
            raise ValueError(f"precision must be auto, bfloat16 or float32, found {precision!r}")
        self.device = torch.device(device)
        fast = precision == "auto" and is_bfloat16_fast(self.device)
        self.dtype = torch.bfloat16 if fast or precision == "bfloat16" else torch.float32
        logger.info("precision: %s on %s", str(self.dtype).removeprefix("torch."), self.device)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the network's output for ``inputs``, as float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()
