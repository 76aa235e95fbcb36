"""LunaModel, the book's 3D convolutional network (chapter 11.4)."""

import math

import torch
from torch import nn

_MAX_ELEMENTS = 2**31 - 1  # of a tensor, because many GPU kernels and cuDNN use indices of 32 bits


class LunaBlock(nn.Module):
    """Two 3x3x3 convolutions with ReLU, then a 2x2x2 max pooling (chapter 11.4.1).

    Args:
        in_channels: channels of the input.
        conv_channels: channels of the output.
    """

    def __init__(self, in_channels: int, conv_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, conv_channels, kernel_size=3, padding=1, bias=True)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(conv_channels, conv_channels, kernel_size=3, padding=1, bias=True)
        self.relu2 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(2, 2)

    def forward(self, input_batch: torch.Tensor) -> torch.Tensor:
        """Halve (N, in_channels, D, H, W) in each direction: (N, conv_channels, D/2, H/2, W/2)."""
        block_out = self.relu1(self.conv1(input_batch))
        block_out = self.relu2(self.conv2(block_out))
        return self.maxpool(block_out)


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
            because ``tail_batchnorm`` normalizes the whole batch. Batches are not split if this is None, in exports,
            and in evaluation with gradients, because :class:`monai.visualize.GradCAM` hooks the layers. On GPUs,
            batches are split only if the output of a layer would have more than 2^31 elements: with 8 channels, from
            3,641 candidates on.

    Reference:
        Stevens, Antiga, Viehmann: *Deep Learning with PyTorch* (Manning, 2020), chapter 11.4.
    """

    def __init__(self, in_channels: int = 1, conv_channels: int = 8, split_size: int | None = 4) -> None:
        super().__init__()
        self.split_size = split_size
        self.tail_batchnorm = nn.BatchNorm3d(in_channels)
        self.block1 = LunaBlock(in_channels, conv_channels)
        self.block2 = LunaBlock(conv_channels, conv_channels * 2)
        self.block3 = LunaBlock(conv_channels * 2, conv_channels * 4)
        self.block4 = LunaBlock(conv_channels * 4, conv_channels * 8)
        self.head_linear = nn.Linear(conv_channels * 8 * 2 * 3 * 3, 2)
        self._init_weights()

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
            if parts > 1:
                return torch.cat([self._classify(part) for part in block_out.tensor_split(parts)])
        return self._classify(block_out)

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
        block_out = self.block1(block_out)
        block_out = self.block2(block_out)
        block_out = self.block3(block_out)
        block_out = self.block4(block_out)
        return self.head_linear(torch.flatten(block_out, 1))


class BookLunaModel(LunaModel):
    """:class:`LunaModel` with the book's return value: ``(logits, probabilities)``, both (N, 2)."""

    def forward(self, input_batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Classify candidates; see :meth:`LunaModel.forward`."""
        logits = super().forward(input_batch)
        return logits, torch.softmax(logits, dim=1)
