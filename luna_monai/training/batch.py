"""From the loader to the logits: where a batch goes, and the precision that it is computed in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import torch
from monai.inferers import SimpleInferer

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class PrepareCandidateBatch:
    """The ``prepare_batch`` of the engines: copies int16 to the device, converts to float32 and augments there.

    Half the bytes of float32 are copied, and whole batches are augmented where the network runs. The memory layout
    ``torch.channels_last_3d`` makes 3D convolutions more than twice as fast on CPUs.

    Args:
        augmentation: takes and returns a float batch (N, 1, 32, 48, 48) in HU; none when None.
    """

    augmentation: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Prepare one batch.

        Args:
            batchdata: ``image``, int16 (N, 1, 32, 48, 48) in HU, and ``label``, int64 (N,).
            device: target device.
            non_blocking: copy asynchronously.
            kwargs: other arguments of ``Tensor.to`` for the images.

        Returns:
            float32 images and the labels, on the device.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        label = batchdata["label"].to(device, non_blocking=non_blocking)
        image = image.to(torch.float32, memory_format=torch.channels_last_3d, **kwargs)
        if self.augmentation is not None:
            image = self.augmentation(image)
        return image, label


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions for bfloat16: AMX or AVX512-BF16, or compute capability 8.0 and newer.

    Args:
        device: CPU or GPU.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.8 to 2.11 have it in parts
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under ``torch.autocast``: weights stay float32, and logits are returned as float32.

    MONAI's ``amp`` option is for CUDA only, and scales losses although the range of bfloat16 needs no scaling. PyTorch
    lets cuDNN round float32 to TF32 (10 bits) in convolutions unless ``torch.backends.cudnn.allow_tf32`` is False.

    Args:
        device: where the network runs.
        precision: ``"bfloat16"``, ``"float32"``, or ``"auto"``: bfloat16 where the devices of all processes have
            instructions for it, see :func:`has_bfloat16`. A resumed run keeps its precision on any machine.

    Attributes:
        dtype: the precision.
    """

    def __init__(self, device: str | torch.device, precision: str = "auto") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.precision = precision
        if precision == "auto":
            able = idist.all_reduce(int(has_bfloat16(self.device)), "MIN")
            precision = "bfloat16" if able else "float32"
        self.dtype: torch.dtype = getattr(torch, precision)
        logger.info("precision: %s on %s (%s)", precision, self.device, self.precision)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the network's output for ``inputs``, as float32."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()

    def state_dict(self) -> dict[str, str]:
        """Return the precision, for a checkpoint."""
        return {"dtype": str(self.dtype).removeprefix("torch.")}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take over the precision of a checkpoint."""
        if state != self.state_dict():
            logger.info("precision: %s, as at the start of the run", state["dtype"])
        self.dtype = getattr(torch, state["dtype"])
