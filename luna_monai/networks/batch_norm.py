"""Batch normalisation over a batch that is spread over several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class AllReduceBatchNorm(_BatchNorm):
    """What ``torch.nn.SyncBatchNorm`` does on GPUs, by ``all_reduce``, which every device and backend has.

    In training, mean and variance are those of the batches of all processes together, however many samples each has,
    so several processes normalise as one process with the whole batch does. Parameters, buffers and their names are
    those of ``torch.nn.BatchNorm3d``. In evaluation, or without other processes, it is plain batch normalisation.

    Args:
        num_features: channels of the input, as for ``torch.nn.BatchNorm3d``, and so are all others.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least (N, C), found {tuple(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, …) over all but the channels."""
        if not self.training or not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        values = input.float()
        # The mean first, then what is left: the difference of two large sums of squares would lose the small ones. The
        # sums in double precision, because torch.compile adds up one value after the other.
        number = values.new_tensor([values.numel() / values.shape[1]], dtype=torch.float64)
        total = _sum_over_processes(torch.cat([values.sum(axes, dtype=torch.float64), number]))
        mean, count = (total[:-1] / total[-1]).float(), total[-1].detach()
        centred = values - mean.view(shape)
        variance = (_sum_over_processes(centred.square().sum(axes, dtype=torch.float64)) / count).float()
        self._update_running(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        normalised = centred * scale.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_((variance * count / (count - 1)).float(), momentum)


class _SumOverProcesses(torch.autograd.Function):
    """``all_reduce`` with a gradient: what each process gets depends on what all of them gave."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient


def _sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    return _SumOverProcesses.apply(values)


def synchronize_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Make the batch normalisations of a network take their statistics from all processes.

    Parameters and buffers stay the same objects, so an optimizer that has them keeps them.

    Args:
        network: changed in place, unless it is a batch normalisation itself.
        device: where it runs: GPUs get ``torch.nn.SyncBatchNorm``, all others :class:`AllReduceBatchNorm`.

    Returns:
        The network.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if isinstance(network, _BatchNorm):
        replacement = AllReduceBatchNorm(
            network.num_features, network.eps, network.momentum, network.affine, network.track_running_stats
        )
        replacement.weight, replacement.bias = network.weight, network.bias
        replacement.running_mean, replacement.running_var = network.running_mean, network.running_var
        replacement.num_batches_tracked = network.num_batches_tracked
        return replacement.train(network.training)
    for name, child in network.named_children():
        setattr(network, name, synchronize_batch_norm(child, device))
    return network
