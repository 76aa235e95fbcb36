"""Batch preparation on the device, and inference in a given precision."""

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

    Copying int16 instead of float32 halves the transfer. Augmentation runs on whole batches, on the device of the
    network. The memory layout ``torch.channels_last_3d`` makes 3D convolutions more than twice as fast on CPUs.

    Args:
        augmentation: takes and returns a float32 batch (N, 1, 32, 48, 48) in HU; None for no augmentation.
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
            Images, float32 (N, 1, 32, 48, 48) in HU, and labels, int64 (N,), both on the device.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        label = batchdata["label"].to(device, non_blocking=non_blocking)
        image = image.to(torch.float32, memory_format=torch.channels_last_3d, **kwargs)
        if self.augmentation is not None:
            image = self.augmentation(image)
        return image, label


def has_bfloat16(device: torch.device) -> bool:
    """Check whether a device supports bfloat16 in hardware.

    Args:
        device: CPU or GPU.

    Returns:
        True for CPUs with AMX or AVX512-BF16 and for GPUs of compute capability 8.0 or newer.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.8 to 2.11
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class AutocastInferer(SimpleInferer):
    """``SimpleInferer`` under ``torch.autocast``: weights stay float32, and logits are returned as float32.

    MONAI's ``amp`` option works on CUDA only, and it scales the loss, which bfloat16 does not need. In convolutions on
    GPUs, cuDNN rounds float32 to TF32 (10 bits of mantissa) unless ``torch.backends.cudnn.allow_tf32`` is False.

    Args:
        device: device of the network.
        precision: ``"bfloat16"``, ``"float32"``, or ``"auto"``: bfloat16 if the devices of all processes support it in
            hardware, see :func:`has_bfloat16`, else float32. A resumed run keeps its precision on any machine.

    Attributes:
        dtype: ``torch.bfloat16`` or ``torch.float32``.
    """

    def __init__(self, device: str | torch.device, precision: str = "auto") -> None:
        super().__init__()
        self.device = torch.device(device)
        self.precision = precision
        if precision == "auto":
            precision = "bfloat16" if idist.all_reduce(int(has_bfloat16(self.device)), "MIN") else "float32"
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
        """Restore the precision from a checkpoint."""
        if state != self.state_dict():
            logger.info("precision: %s, restored from the checkpoint", state["dtype"])
        self.dtype = getattr(torch, state["dtype"])
