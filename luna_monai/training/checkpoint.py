"""Checkpoints: the full state of a run, saved after each epoch and restored when the run is resumed."""

import json
import logging
from collections.abc import Mapping
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
    """Save the state of a run, and keep the previous checkpoint as ``checkpoint-previous.pt``.

    ignite's ``Checkpoint(DiskSaver(atomic=True), n_saved=2)`` is not used, because it numbers the files and does not
    flush them to disk before it renames them.

    Args:
        folder: the run folder.
        content: ``epoch``, ``iteration`` and ``settings``.
        objects: objects whose ``state_dict()`` is saved, by name.

    Raises:
        LunaError: if a file cannot be written.
    """
    path = folder / CHECKPOINT
    if path.exists():
        write_bytes(folder / PREVIOUS_CHECKPOINT, path.read_bytes())
    write_tensors(path, {**content, "state": {name: item.state_dict() for name, item in objects.items()}})


def restore_checkpoint(folder: Path, objects: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Restore a run from its newest undamaged checkpoint, log a warning for a damaged one, and replace it.

    Args:
        folder: the run folder.
        objects: as for :func:`save_checkpoint`.
        settings: settings of the current run; they must equal those in the checkpoint.

    Returns:
        The ``content`` that was saved.

    Raises:
        LunaError: if there is no checkpoint, if none can be restored, or if the settings differ.
    """
    reasons: list[str] = []
    for path in filter(Path.is_file, (folder / CHECKPOINT, folder / PREVIOUS_CHECKPOINT)):
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if difference := first_difference(content["settings"], settings, "resume"):
                advice = f"or start a new run from its weights with finetune={path}"
                raise LunaError(f"{folder}: cannot resume: {difference}; resume with the same settings, {advice}")
            for name, item in objects.items():
                item.load_state_dict(content["state"][name])
            if reasons:  # else the next save would replace the previous checkpoint by the damaged one
                write_bytes(folder / CHECKPOINT, path.read_bytes())
            return content
        except LunaError:
            raise
        except Exception as error:  # torch.load and each object raise exceptions of their own
            reasons.append(f"{path} ({reason_of(error)})")
            logger.warning("Skipping damaged checkpoint: %s", reasons[-1])
    found = f"cannot resume from {' or '.join(reasons)}" if reasons else f"{folder}: no {CHECKPOINT} in this folder"
    raise LunaError(f"{found}; start without resume")


def first_difference(was: Mapping[str, Any], now: Mapping[str, Any], between: str) -> str:
    """Find the first setting that differs between two configurations.

    Keys with a matching ``mayDiffer`` in train.schema.json may differ, such as paths and settings that depend on the
    machine, and keys of the overlays multi_gpu_train.yaml and mlflow.yaml.

    Args:
        was: a recorded configuration.
        now: the current configuration.
        between: what is compared: ``resume`` for a run and the run that is resumed, ``fold`` for two folds.

    Returns:
        ``KEY was 1, is now 2``, or an empty string if no setting differs.
    """
    skipped = {key for key, rules in schema("train")["properties"].items() if rules.get("mayDiffer") in (True, between)}
    for name in ("multi_gpu_train", "mlflow"):
        overlay = yaml.safe_load((bundle_dir() / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        skipped |= {key.lstrip("+") for key in overlay}
    both = [dict(leaves_and_sections(each)) for each in (was, now)]
    before, after = ({key: one for key, one in each.items() if not isinstance(one, Mapping | list)} for each in both)
    for key in [*after, *before]:
        if before.get(key) != after.get(key) and not any(f"{key}#".startswith(f"{name}#") for name in skipped):
            shown = [json.dumps(leaves[key], default=str) if key in leaves else "not set" for leaves in (before, after)]
            return f"{key} was {shown[0]}, is now {shown[1]}"
    return ""
