"""The configuration of a run: recorded, and compared when the run is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from luna_monai.errors import LunaError
from luna_monai.share import bundle_dir

#: Keys that may differ when a run is resumed: places, the machine, and when to stop.
_MAY_DIFFER = {
    "bundle_root", "dataset_dir", "cache_dir", "output_dir", "device", "num_workers", "precache_workers",
    "compile", "val_batch_size", "max_epochs", "patience", "resume", "finetune", "comment",
    "tb_prefix", "tracking_uri", "experiment_name", "run_name", "save_execute_config",
}  # fmt: skip


def check_resumable(was: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Refuse to resume a run with other settings.

    What divides the work among processes or records it may differ: all keys of the overlays for that.

    Args:
        was: the recorded configuration.
        now: the current one.
        source: the run's folder, for the message.

    Raises:
        LunaError: naming the first key whose value differs, with both values.
    """
    overlays = [bundle_dir() / "configs" / f"{name}.yaml" for name in ("multi_gpu_train", "mlflow")]
    overlaid = {key for path in overlays for key in ConfigParser.load_config_file(path)}
    ignored = _MAY_DIFFER | {key.lstrip("+").replace("::", "#") for key in overlaid}
    before, after = dict(_leaves(was)), dict(_leaves(now))
    for key in [*after, *before]:
        parts = key.split("#")
        above = {"#".join(parts[:count]) for count in range(1, len(parts) + 1)}
        if not above & ignored and before.get(key) != after.get(key):
            raise LunaError(
                f"{source}: cannot resume: {key} was {_shown(before, key)}, is {_shown(after, key)}; resume with the "
                f"same settings, or start a new run from its weights with finetune={source / 'model.pt'}"
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    entries: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if not value or not isinstance(value, Mapping | list):
        yield key, value
    for name, item in entries:
        yield from _leaves(item, f"{key}#{name}" if key else str(name))


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "not set"
