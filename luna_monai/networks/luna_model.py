"""LunaModel, the book's 3D convolutional network (chapter 11.4)."""

import copy
import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_MAX_ELEMENTS = 2**31 - 1  # of a tensor, because many GPU kernels and cuDNN use indices of 32 bits


class LunaBlock(nn.Module):
    """Two 3x3x3 convolutions with ReLU, then a 2x2x2 max pooling (chapter 11.4.1).

    Args:
        in_channels: channels of the input.
        conv_channels: channels of the output.
        batch_norm: batch normalization after each convolution, see :class:`LunaModel`.
    """

    def __init__(self, in_channels: int, conv_channels: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, conv_channels, kernel_size=3, padding=1, bias=True)
        self.norm1: Any = nn.BatchNorm3d(conv_channels) if batch_norm else nn.Identity()
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(conv_channels, conv_channels, kernel_size=3, padding=1, bias=True)
        self.norm2: Any = nn.BatchNorm3d(conv_channels) if batch_norm else nn.Identity()
        self.relu2 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(2, 2)

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Halve (N, in_channels, D, H, W) in each direction: (N, conv_channels, D/2, H/2, W/2)."""
        block_out = self.relu1(self.norm1(self.conv1(input_batch)))
        # The book's order, ReLU before the pooling, gives the same values and gradients and takes more time.
        return self.relu2(self.maxpool(self.norm2(self.conv2(block_out))))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """In evaluation mode, take the form of the weights, with or without batch normalization."""
        for conv, norm in ((self.conv1, "norm1"), (self.conv2, "norm2")) if not self.training else ():
            given = f"{prefix}{norm}.weight" in state_dict
            if given is isinstance(getattr(self, norm), nn.Identity):
                setattr(
                    self, norm, nn.BatchNorm3d(conv.out_channels).to(conv.weight).eval() if given else nn.Identity()
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class LunaModel(nn.Module):
    """The book's network for candidates of 32 x 48 x 48 voxels, with its parameter names and initialization.

    ``forward`` returns logits alone, because MONAI's engines, inferers and bundle commands expect one tensor;
    :class:`BookLunaModel` returns the book's pair. One ``state_dict`` serves both, and the book's published ``.state``
    files load with ``strict=True``.

    Args:
        in_channels: channels of a candidate; 1 for CT.
        conv_channels: channels of the first block; each of the three following blocks has twice as many.
        split_size: on a CPU, the largest number of candidates that pass through the convolutions together, so that the
            outputs of layers stay in the processor's cache. Results equal those of the whole batch up to rounding,
            because normalizations in training are those of the whole batch. Batches are not split if this is None, in
            exports, and in evaluation with gradients, because :class:`monai.visualize.GradCAM` hooks the layers. On
            GPUs, batches are split only if the output of a layer would have more than 2^31 elements: with 8 channels,
            from 3,641 candidates on.
        batch_norm: train the blocks after the first with batch normalization after each convolution, which the book
            does not do. Training then needs less than half of the samples (docs/experiments.md). Once trained, a
            normalization is a part of its convolution: :meth:`folded` returns the book's network. In evaluation mode,
            ``load_state_dict`` accepts weights with and without batch normalization.

    Reference:
        Stevens, Antiga, Viehmann: *Deep Learning with PyTorch* (Manning, 2020), chapter 11.4.
    """

    def __init__(
        self, in_channels: int = 1, conv_channels: int = 8, split_size: int | None = 4, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.split_size = split_size
        self.tail_batchnorm = nn.BatchNorm3d(in_channels)
        self.block1 = LunaBlock(in_channels, conv_channels)
        self.block2 = LunaBlock(conv_channels, conv_channels * 2, batch_norm)
        self.block3 = LunaBlock(conv_channels * 2, conv_channels * 4, batch_norm)
        self.block4 = LunaBlock(conv_channels * 4, conv_channels * 8, batch_norm)
        self.head_linear = nn.Linear(conv_channels * 8 * 2 * 3 * 3, 2)
        self._init_weights()
        if batch_norm:  # the book's weights would give logits of about 30 for normalized values
            nn.init.normal_(self.head_linear.weight, std=0.02)

    def folded(self) -> "LunaModel":
        """Return a copy in evaluation mode whose batch normalizations are part of the convolutions before them."""
        network = copy.deepcopy(self).eval()
        for block in network.children():
            if isinstance(block, LunaBlock) and not isinstance(block.norm1, nn.Identity):
                block.conv1, block.norm1 = fuse_conv_bn_eval(block.conv1, block.norm1), nn.Identity()
                block.conv2, block.norm2 = fuse_conv_bn_eval(block.conv2, block.norm2), nn.Identity()
        return network

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=0, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    _, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
                    bound = 1 / math.sqrt(fan_out)
                    # As in the book, which passes the limits of a uniform distribution to normal_(): biases are drawn
                    # from a normal distribution with mean -bound and standard deviation bound.
                    nn.init.normal_(module.bias, -bound, bound)

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Classify candidates.

        Args:
            input_batch: (N, in_channels, 32, 48, 48), float, in HU clipped to [-1000, 1000]; ``tail_batchnorm``
                normalizes the values.

        Returns:
            Logits (N, 2): not a nodule, nodule.
        """
        block_out = self.tail_batchnorm(input_batch)
        if not torch.jit.is_scripting():
            parts = self._parts(block_out)
            if parts > 1 and self.training and not isinstance(self.block2.norm1, nn.Identity):
                return self._classify(torch.cat([self.block1(part) for part in block_out.tensor_split(parts)]))
            if parts > 1:
                return torch.cat([self._classify(self.block1(part)) for part in block_out.tensor_split(parts)])
        return self._classify(self.block1(block_out))

    @torch.jit.unused
    def _parts(self, batch: torch.Tensor) -> int:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return 1
        if batch.device.type != "cpu":
            candidate = math.prod(batch.shape[2:]) * self.block1.conv1.out_channels
            return math.ceil(len(batch) / (_MAX_ELEMENTS // candidate))
        with_gradients = not self.training and torch.is_grad_enabled()
        if self.split_size is None or torch.compiler.is_compiling() or with_gradients:
            return 1
        return math.ceil(len(batch) / self.split_size)

    def _classify(self, block_out: torch.Tensor) -> torch.Tensor:
        return self.head_linear(torch.flatten(self.block4(self.block3(self.block2(block_out))), 1))


class BookLunaModel(LunaModel):
    """:class:`LunaModel` with the book's return value: ``(logits, probabilities)``, both (N, 2)."""

    def forward(self, input_batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Classify candidates; see :meth:`LunaModel.forward`."""
        logits = super().forward(input_batch)
        return logits, torch.softmax(logits, dim=1)
