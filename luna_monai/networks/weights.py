"""Weights from files: ours, a run's checkpoint, or what the book's training scripts save."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from luna_monai.errors import LunaError

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
        LunaError: when there is no such file, it is damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise LunaError(f"{path}: {what}; {_FORMS}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its zip, pickle and tensor readers do
        reason = str(error).strip().splitlines()
        raise LunaError(
            f"{path}: damaged, or no file of weights ({reason[0] if reason else type(error).__name__}); {_FORMS}"
        ) from None
    state = _state_dict_in(content)
    if state is None:
        names = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ""
        found = f"a dict with {names}" if names else f"a {type(content).__name__}"
        raise LunaError(f"{path}: holds no weights ({found}); {_FORMS}")
    return state


def with_weights(network: torch.nn.Module, path: str | Path | None) -> torch.nn.Module:
    """Put weights from a file into a network.

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
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or unknown or other:
        problems = []
        if missing:
            problems.append(f"{len(missing)} parameters are missing, such as {missing[0]}")
        if unknown:
            problems.append(f"{len(unknown)} are unknown, such as {unknown[0]}")
        if other:
            shapes = f"{tuple(state[other[0]].shape)} instead of {tuple(own[other[0]].shape)}"
            problems.append(f"{len(other)} have another shape, such as {other[0]}, {shapes}")
        raise LunaError(
            f"{path}: the weights are those of another network than {type(network).__name__} ({'; '.join(problems)})"
        )
    network.load_state_dict(state)
    logger.info("Weights from %s", path)
    return network


def _state_dict_in(content: Any) -> dict[str, torch.Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    if isinstance(content.get("model_state"), Mapping):
        content = content["model_state"]
    elif isinstance(content.get("state"), Mapping) and isinstance(content["state"].get("network"), Mapping):
        content = content["state"]["network"]
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        return None
    return {str(name): value for name, value in content.items()}
