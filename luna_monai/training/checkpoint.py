"""The full state of a run: saved each epoch, and restored when a run is resumed."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"
_FORMAT = 2  # of the content


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimizers, schedulers, counters."""

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


def save_tensors(path: Path, content: Any) -> None:
    """``torch.save`` to a file that is there whole or not at all."""
    # Into memory first: on a full disk torch.save itself fails with a RuntimeError that does not name the cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def save_checkpoint(folder: Path, content: Mapping[str, Any], objects: Mapping[str, Stateful]) -> None:
    """Save the state of a run, keeping the checkpoint before it as ``checkpoint-previous.pt``.

    ignite's ``Checkpoint(DiskSaver(atomic=True), n_saved=2)`` has a number in each name, where the newest one is to be
    found as ``checkpoint.pt``, and does not flush to disk before it renames.

    Args:
        folder: the run's folder.
        content: ``epoch``, ``iteration``, and what else describes the run.
        objects: whose states to save, by name.

    Raises:
        LunaError: when a file cannot be written.
    """
    path = folder / CHECKPOINT
    if path.exists():
        write_bytes(folder / PREVIOUS_CHECKPOINT, path.read_bytes())
    state = {name: item.state_dict() for name, item in objects.items()}
    save_tensors(path, {"format": _FORMAT, **content, "state": state})


def restore_checkpoint(
    folder: Path, objects: Mapping[str, Stateful], check: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Restore a run from its newest checkpoint that is whole; a damaged one is named in the log.

    Args:
        folder: the run's folder.
        objects: as for :func:`save_checkpoint`.
        check: called with the content; raises a ``LunaError`` where the run is another one.

    Returns:
        The content.

    Raises:
        LunaError: when there is no checkpoint, none can be restored, or it is that of another run.
    """
    found = [path for path in (folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT) if path.is_file()]
    reasons = []
    for path in found:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content["format"] != _FORMAT:
                raise ValueError("not a checkpoint of this version of luna-monai")
            state = content["state"]
            if state.keys() != objects.keys():
                raise ValueError(f"it holds {', '.join(state)}; this configuration has {', '.join(objects)}")
            check(content)
            for name, item in objects.items():
                item.load_state_dict(state[name])
        except LunaError:
            raise
        except Exception as error:  # torch.load and each object raise exceptions of their own
            reasons.append(f"{path} ({(str(error).splitlines() or [type(error).__name__])[0].rstrip(':')})")
            logger.warning("Damaged, not used: %s", reasons[-1])
        else:
            return content  # type: ignore[no-any-return]
    raise LunaError(
        f"cannot resume from {' or '.join(reasons)}; start without resume"
        if reasons
        else f"{folder}: no {CHECKPOINT} in this folder, cannot resume; start without resume"
    )
