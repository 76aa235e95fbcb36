"""Locations of the bundle and the experiment configurations, in a checkout and in an installed wheel."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def _share_dir() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "bundle" / "configs").is_dir() else package / "_share"


def bundle_dir() -> Path:
    """Return the folder of the MONAI bundle."""
    return _share_dir() / "bundle"


def configs_dir() -> Path:
    """Return the folder of the experiment configurations, which are overlays on the bundle's ``train.yaml``."""
    return _share_dir() / "configs"


@cache
def schema(kind: str) -> Mapping[str, Any]:
    """Read the JSON schema of a configuration, ``train`` or ``inference``.

    The schema has additional keywords. ``format`` is ``path`` or ``text`` for values that are never expressions on a
    command line. ``mustExist`` is true for files and folders that are read. ``mayDiffer`` is true for keys that do not
    change the results of a training, ``resume`` for keys that may change when a run is resumed, and ``fold`` for keys
    that may differ between folds. ``commands`` are the commands that have an option for the key, named ``option`` if it
    differs from the key.
    """
    path = bundle_dir() / "configs" / f"{kind}.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
