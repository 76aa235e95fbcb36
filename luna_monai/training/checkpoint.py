"""The full state of a run: saved each epoch, and restored when a run is resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from luna_monai.errors import LunaError, reason_of
from luna_monai.files import write_bytes, write_tensors
from luna_monai.literals import leaves_and_sections
from luna_monai.share import bundle_dir, schema

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PREVIOUS_CHECKPOINT = "checkpoint-previous.pt"


def save_checkpoint(folder: Path, content: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Save the state of a run, keeping the checkpoint before it as ``checkpoint-previous.pt``.

    ignite's ``Checkpoint(DiskSaver(atomic=True), n_saved=2)`` has a number in each name, where the newest one is to be
    found as ``checkpoint.pt``, and does not flush to disk before it renames.

    Args:
        folder: the run's folder.
        content: ``epoch``, ``iteration`` and ``settings``.
        objects: whose ``state_dict()`` to save, by name.

    Raises:
        LunaError: when a file cannot be written.
    """
    path = folder / CHECKPOINT
    if path.exists():
        write_bytes(folder / PREVIOUS_CHECKPOINT, path.read_bytes())
    write_tensors(path, {**content, "state": {name: item.state_dict() for name, item in objects.items()}})


def restore_checkpoint(folder: Path, objects: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Restore a run from its newest checkpoint that is whole; a damaged one is named in the log.

    Args:
        folder: the run's folder.
        objects: as for :func:`save_checkpoint`.
        settings: those of the present run, which must be the recorded ones.

    Returns:
        The content.

    Raises:
        LunaError: when there is no checkpoint, none can be restored, or it is that of a run with other settings.
    """
    reasons = []
    for path in filter(Path.is_file, (folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT)):
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if difference := first_difference(content["settings"], settings, ("max_epochs", "patience", "finetune")):
                advice = f"or start a new run from its weights with finetune={folder / 'model.pt'}"
                raise LunaError(f"{folder}: cannot resume: {difference}; resume with the same settings, {advice}")
            for name, item in objects.items():
                item.load_state_dict(content["state"][name])
            return content
        except LunaError:
            raise
        except Exception as error:  # torch.load and each object raise exceptions of their own
            reasons.append(f"{path} ({reason_of(error)})")
            logger.warning("Damaged, not used: %s", reasons[-1])
    found = f"cannot resume from {' or '.join(reasons)}" if reasons else f"{folder}: no {CHECKPOINT} in this folder"
    raise LunaError(f"{found}; start without resume")


def first_difference(was: Mapping[str, Any], now: Mapping[str, Any], ignored: Iterable[str] = ()) -> str:
    """Name the first setting by which two trainings differ, ``KEY was 1, is 2``; empty where there is none.

    Places and what only the machine needs may differ: keys with ``mayDiffer`` in train.schema.json, and those of the
    overlays that divide the work among processes or record it.

    Args:
        was: a recorded configuration.
        now: another one.
        ignored: more keys that may differ.
    """
    skipped = {key for key, rules in schema("train")["properties"].items() if rules.get("mayDiffer")} | set(ignored)
    for name in ("multi_gpu_train", "mlflow"):
        overlay = yaml.safe_load((bundle_dir() / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        skipped |= {key.lstrip("+") for key in overlay}
    before, after = (
        {key: value for key, value in leaves_and_sections(each) if not isinstance(value, Mapping | list)}
        for each in (was, now)
    )
    for key in [*after, *before]:
        if before.get(key) != after.get(key) and not any(f"{key}#".startswith(f"{name}#") for name in skipped):
            shown = [json.dumps(leaves[key], default=str) if key in leaves else "not set" for leaves in (before, after)]
            return f"{key} was {shown[0]}, is {shown[1]}"
    return ""
