"""Weights from files: ours, a run's checkpoint, or those of the book's training scripts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from luna_monai.errors import LunaError, reason_of

logger = logging.getLogger(__name__)

_FORMS = "expected a run's model.pt or checkpoint.pt, or a .state file of the book"


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a network from any file that this project or the book writes.

    Args:
        path: ``model.pt`` (a ``state_dict``), ``checkpoint.pt`` (the full state of a run) or a ``.state`` file of
            *Deep Learning with PyTorch* (a dict with ``model_state``).

    Returns:
        The ``state_dict``, on the CPU.

    Raises:
        LunaError: when there is no such file, it is damaged, or holds something else than finite real numbers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        raise LunaError(f"{path}: cannot be read as weights ({reason_of(error)}); {_FORMS}") from None
    for name in ("model_state", "state", "network"):  # of the book; of a checkpoint
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise LunaError(f"{path}: holds no weights but a {type(content).__name__}; {_FORMS}")
    for name, values in content.items():
        if not values.isfinite().all():
            raise LunaError(f"{path}: {name} holds NaN or infinite values; use weights from before training diverged")
    return {str(name): value for name, value in content.items()}


def with_weights(network: torch.nn.Module, path: str | Path | None) -> torch.nn.Module:
    """Load weights from a file into a network.

    Args:
        network: changed in place.
        path: see :func:`load_weights`; None leaves the network as it is.

    Returns:
        The same network.

    Raises:
        LunaError: as :func:`load_weights`, and when the weights are those of another network.
    """
    if path is None:
        return network
    state = load_weights(path)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise LunaError(
            f"{path}: weights of another network than {type(network).__name__} ({reason_of(error)})"
        ) from None
    logger.info("Weights from %s", path)
    return network


def check_network(network: torch.nn.Module, spatial_size: Sequence[int], device: str | torch.device) -> torch.nn.Module:
    """Move a network to where it runs, laid out for 3D convolutions, and try it with one empty crop.

    Args:
        network: any that is for candidates.
        spatial_size: voxels of a candidate, z, y, x.
        device: where the network runs.

    Returns:
        The same network.

    Raises:
        LunaError: when it cannot take such a crop, or does not give two logits.
    """
    name, size = f"network_def: {type(network).__name__}", " x ".join(map(str, spatial_size))
    training = network.training
    network.to(device)  # a device that is not there is no fault of the network
    try:
        network.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload] # not in its stubs
        with torch.inference_mode():
            shape = tuple(network(torch.zeros(1, 1, *spatial_size, device=device)).shape)
    except Exception as error:  # whatever a network and its device raise
        raise LunaError(f"{name} cannot classify candidates of {size} voxels ({reason_of(error)})") from error
    if shape != (1, 2):
        raise LunaError(f"{name} must give 2 logits for a candidate, found shape {shape}")
    return network.train(training)
