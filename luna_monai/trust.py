"""Reading configurations, and what of a run's ``config.yaml`` is taken over: no code that others have written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from luna_monai.errors import LunaError
from luna_monai.literals import text_of
from luna_monai.share import bundle_dir, configs_dir


def run_config(run: Path, overlays: Sequence[str]) -> str:
    """Return the configuration of a run, after checking that it runs no code of its own.

    A run may come from anyone, and MONAI evaluates each text that starts with ``$`` and calls each ``_target_``. Those
    must be in the same place of the bundle's configurations, or of a file that was given with ``--config``.

    Args:
        run: folder of a run.
        overlays: the files that were given, which are trusted.

    Returns:
        The path of its ``config.yaml``.

    Raises:
        LunaError: when it is missing or damaged, or would run other code.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise LunaError(f"{run}: no config.yaml in this folder, so it is not the folder of a run")
    shipped = [*(bundle_dir() / "configs").glob("*.yaml"), *configs_dir().glob("*.yaml"), *map(Path, overlays)]
    trusted = {code for file in shipped for code in _code_in(read_config(file))}
    for key, value in _code_in(read_config(path)):
        if (key, value) not in trusted:
            raise LunaError(
                f"{path}: {key}: {value!r} is code that does not come with luna-monai, and is not run. If you trust "
                f"this file as you trust a program, add '--config {path}'"
            )
    return str(path)


def read_config(path: Path) -> Mapping[str, Any]:
    """Read a configuration as MONAI reads it, so that what is checked is what runs.

    Raises:
        LunaError: when it cannot be read, is empty, or holds no keys.
    """
    from monai.bundle import ConfigParser

    try:
        content = ConfigParser.load_config_file(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise LunaError(f"{path}: cannot be read as YAML ({text}); indent with spaces, not tabs") from None
    if not isinstance(content, Mapping):
        raise LunaError(f"{path}: expected keys and values, such as 'max_epochs: 3', found {content!r:.60}")
    return content


def _code_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """List what MONAI would run, each with its key; the items of a list have the key of the list."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            part = str(name).removeprefix("+").replace("::", "#")
            yield from _code_in(item, f"{key}#{part}" if key else part)
    elif isinstance(value, list):
        for item in value:
            yield from _code_in(item, key)
    elif key.endswith(("_target_", "_mode_")) or (str(value).startswith(("$", "%")) and text_of(value) == value):
        yield "#".join(part for part in key.split("#") if not part.isdigit()), str(value).replace("::", "#")
