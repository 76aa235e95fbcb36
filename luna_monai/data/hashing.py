"""What decides whether a cached series is still valid: descriptions of items and transforms, and their hashes."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
from monai.data.utils import json_hashing

from luna_monai.errors import LunaError

#: Length of the hashes in the names of files.
HASH_LENGTH = 16  # hexadecimal digits: 64 bits, in a folder that holds thousands of files
_FORMAT = 1  # of the files of the cache; another number makes all keys new


def describe(value: Any) -> Any:
    """Describe a transform, or anything inside one, by its class and all its parameters.

    Pickles of equal transforms differ with the identity of the strings inside, and can't be read by a person;
    ``json_hashing`` of a transform falls back to its name and misses changed parameters. This description does
    neither.

    Args:
        value: a transform, or any value that one may hold.

    Returns:
        A structure that ``json.dumps`` takes.

    Raises:
        LunaError: for a lambda or a local function, whose parameters nobody can see.
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [describe(entry) for entry in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    if isinstance(value, (type, FunctionType)):
        if "<" in value.__qualname__:
            raise LunaError(
                f"a cached transform holds {value.__module__}.{value.__qualname__}, whose changes can't be seen; "
                "use a transform class, or a function of a module"
            )
        return f"{value.__module__}.{value.__qualname__}"
    if hasattr(value, "__dict__"):
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}"} | describe(vars(value))
    return repr(value)


def transform_hashing(transforms: Sequence[Any]) -> bytes:
    """Hash the deterministic transforms of a cache; the ``hash_transform`` of a ``PersistentDataset``."""
    return hash_of(describe(transforms)).encode()


def series_description(item: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a cached series was made from, wherever the dataset folder is mounted.

    Args:
        item: an item of :func:`luna_monai.data.series_items`.

    Returns:
        The series, its CT files (path inside the dataset folder, bytes, time of modification) and its candidates.
    """
    return {
        "seriesuid": item["seriesuid"],
        "files": item["files"],
        "center_xyz": np.asarray(item["center_xyz"]).tolist(),
    }


def series_hashing(item: Mapping[str, Any]) -> bytes:
    """Hash one series; the ``hash_func`` of a ``PersistentDataset``."""
    return hash_of(series_description(item)).encode()


def hash_of(description: Any) -> str:
    """Hash a description of transforms or of a series."""
    return json_hashing([_FORMAT, description])[:HASH_LENGTH].decode()
