"""The full state of a run: saved each epoch, and taken up again after a stop."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from luna_monai.errors import LunaError
from luna_monai.training.atomic import save_tensors

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimizers, schedulers, generators' owners, counters."""

    def state_dict(self) -> Any:
        """Return the state, made of tensors, numbers, text, lists and dicts."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state."""


def unwrap(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside DistributedDataParallel and ``torch.compile``, whose parameters have the plain names.

    Args:
        network: a network, wrapped or not.
    """
    network = getattr(network, "_orig_mod", network)
    network = getattr(network, "module", network)
    return getattr(network, "_orig_mod", network)


def random_state() -> dict[str, Any]:
    """Return the states of the random number generators of Python, NumPy and torch, as tensors and numbers."""
    version, internal, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries may still use the global generator
    return {
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
        "numpy": {
            "bit_generator": numpy["bit_generator"],
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put all generators back to where :func:`random_state` found them.

    Args:
        state: what it returned. Where the number of GPUs is another one now, those that were there before count.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    key = numpy["key"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (numpy["bit_generator"], key, numpy["pos"], numpy["has_gauss"], numpy["gauss"])
    )
    torch.set_rng_state(state["torch"])
    for number, gpu in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(gpu, number)


def save_checkpoint(folder: Path, epoch: int, iteration: int, objects: Mapping[str, Stateful]) -> None:
    """Save the state of a run, keeping the checkpoint before it as ``checkpoint-previous.pt``.

    Args:
        folder: the run's folder.
        epoch: the last epoch that is complete.
        iteration: iterations done in all epochs.
        objects: what to save the state of, by name.

    Raises:
        LunaError: when the file can't be written.
    """
    content = {
        "epoch": epoch,
        "iteration": iteration,
        "random": random_state(),
        "state": {name: item.state_dict() for name, item in objects.items()},
    }
    path = folder / CHECKPOINT
    new = folder / f".{CHECKPOINT}.new"
    save_tensors(new, content)
    # Were the run killed between these two, the previous checkpoint would be the one that is found.
    if path.exists():
        path.replace(folder / PREVIOUS_CHECKPOINT)
    new.replace(path)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Read the newest checkpoint of a run that is whole; a damaged one is named in the log.

    Args:
        folder: the run's folder.

    Returns:
        ``epoch``, ``iteration``, ``random`` and ``state``, as :func:`save_checkpoint` wrote them, on the CPU.

    Raises:
        LunaError: when there is none, or none can be read.
    """
    damaged = []
    for name in (CHECKPOINT, PREVIOUS_CHECKPOINT):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not {"epoch", "iteration", "random", "state"} <= content.keys():
                raise ValueError("it is no checkpoint of a run")
        except Exception as error:  # torch.load raises whatever its zip, pickle and tensor readers do
            damaged.append(str(path))
            logger.warning("%s is damaged and not used (%s)", path, str(error).splitlines()[0] if str(error) else error)
            continue
        return content
    if damaged:
        raise LunaError(f"{' and '.join(damaged)}: damaged, there is nothing to resume from; start without resume")
    raise LunaError(f"{folder}: no {CHECKPOINT} in this folder, there is nothing to resume from")


def restore_checkpoint(content: Mapping[str, Any], objects: Mapping[str, Stateful], source: Path) -> None:
    """Put the state of a run back into its objects; random states are set by :func:`set_random_state`.

    Args:
        content: what :func:`read_checkpoint` returned.
        objects: the same names as when it was saved.
        source: the run's folder, for messages.

    Raises:
        LunaError: when the checkpoint holds other objects, or an object refuses its state.
    """
    state = content["state"]
    if state.keys() != objects.keys():
        raise LunaError(
            f"{source}: the checkpoint holds {', '.join(state)}; this configuration has {', '.join(objects)}. "
            "Resume with the configuration that the run was started with"
        )
    for name, item in objects.items():
        try:
            item.load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise LunaError(
                f"{source}: the checkpoint's {name} does not fit this configuration ({str(error).splitlines()[0]})"
            ) from error
