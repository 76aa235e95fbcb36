"""What happens to a batch between the loader and the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


class PrepareCandidateBatch:
    """The ``prepare_batch`` of the engines: to the device as int16, then float32, then augmented there.

    Half the bytes go over the bus, and augmentation works on whole batches where the network runs.

    Args:
        augmentation: takes and returns a float batch (N, 1, 32, 48, 48) in HU; none when None.
        memory_format: how the network wants its input laid out. ``torch.channels_last_3d`` makes 3D convolutions more
            than twice as fast on CPUs.
    """

    def __init__(
        self,
        augmentation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        memory_format: torch.memory_format = torch.channels_last_3d,
    ) -> None:
        self.augmentation = augmentation
        self.memory_format = memory_format

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
            device: where to.
            non_blocking: whether the copy may go on in the background.
            kwargs: what else an engine passes to ``Tensor.to`` for images.

        Returns:
            float32 images and the labels, on the device.
        """
        image = batchdata["image"].to(device, non_blocking=non_blocking)
        label = batchdata["label"].to(device, non_blocking=non_blocking)
        image = image.to(torch.float32, memory_format=self.memory_format, **kwargs)
        if self.augmentation is not None:
            image = self.augmentation(image)
        return image, label
