"""One file of the cache: what its name is made of, what is in it, and whether it is complete."""

from __future__ import annotations

import copyreg
import hashlib
import inspect
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data.utils import json_hashing

from luna_monai.errors import LunaError
from luna_monai.files import file_name_of, write_tensors

_FORMAT = 3  # of the files; another number gives every file another name
_HASH_LENGTH = 16  # hexadecimal digits: 64 bits, in a folder that holds thousands of files
_NAME = re.compile(rf"([^.].*)\.[0-9a-f]{{{_HASH_LENGTH}}}\.([0-9a-f]{{{_HASH_LENGTH}}})\.pt")
_RELEASED = ("monai", "luna_monai", "torch", "numpy", "builtins", "copyreg", "functools")


def describe(value: Any) -> Any:
    """Describe a transform, or anything inside one, by its class and all its parameters.

    Classes and functions that are not part of MONAI, torch, NumPy or this package are described by the source of their
    module too. Pickles of equal transforms differ with object identity, and ``json_hashing`` of a transform falls back
    to its name.

    Args:
        value: a transform, or any value that one may hold.

    Returns:
        A structure that ``json.dumps`` takes.

    Raises:
        LunaError: for a lambda, a local function or class, whose changes cannot be seen, and for what has no content.
    """
    try:
        return json.loads(json.dumps(value, default=_describe_object))
    except (TypeError, ValueError) as error:
        raise LunaError(f"a cached transform holds {value!r:.200}, which cannot be described ({error})") from None


def _describe_object(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return [str(value.dtype), value.tolist()]
    if isinstance(value, (type, FunctionType)):
        return _describe_code(value)
    reducer = copyreg.dispatch_table.get(type(value))
    reduced = reducer(value) if reducer else value.__reduce_ex__(2)
    if isinstance(reduced, str):
        return reduced
    maker, arguments, *state = reduced
    if maker is copyreg.__newobj__ and len(arguments) == 1 and isinstance(state[0], dict):  # type: ignore[attr-defined]
        return {"_target_": type(value), **state[0]}
    return {"_target_": type(value), "state": [arguments, *(entry for entry in state if entry is not None)]}


def _describe_code(value: type | FunctionType) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if "<" in name:
        raise LunaError(f"a cached transform holds {name}, whose changes cannot be seen; use one of a module")
    if name.split(".")[0] in _RELEASED:
        return name
    try:
        source = inspect.getsource(sys.modules[value.__module__])
    except (OSError, TypeError, KeyError):  # a compiled module, or one that is not a file
        return name
    return f"{name} {hashlib.sha256(source.encode()).hexdigest()[:_HASH_LENGTH]}"


def transform_hashing(transforms: Sequence[Any]) -> bytes:
    """Hash the deterministic transforms of a cache; the ``hash_transform`` of a ``PersistentDataset``."""
    return hash_of(describe(transforms)).encode()


def series_description(item: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a series is cut from, wherever the dataset folder is mounted: its CT's files and candidates."""
    points = np.asarray(item["center_xyz"]).tolist()
    return {"seriesuid": item["seriesuid"], "files": item["files"], "center_xyz": points}


def series_hashing(item: Mapping[str, Any]) -> bytes:
    """Hash one series; the ``hash_func`` of a ``PersistentDataset``."""
    return hash_of(series_description(item)).encode()


def hash_of(description: Any) -> str:
    """Hash a description of transforms or of a series."""
    return json_hashing([_FORMAT, description])[:_HASH_LENGTH].decode()


class CachedFile(NamedTuple):
    """What the name of a file of the cache says: the series, as in names of files, and the hash of the transforms."""

    path: Path
    seriesuid: str
    transform_hash: str


def name_of(seriesuid: str, series_hash: str, transform_hash: str) -> str:
    """Name the file of a series."""
    return f"{file_name_of(seriesuid)}.{series_hash}.{transform_hash}.pt"


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """List the files of a cache folder in the order of their names; other files are passed over."""
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        if found := _NAME.fullmatch(name):
            yield CachedFile(folder / name, *found.groups())


def is_older(status: os.stat_result, item: Mapping[str, Any]) -> bool:
    """Tell whether a file of the cache was written before a file of its CT was last changed or replaced.

    A program can set a file's time of modification, but not the time of its last change (``st_ctime``), so a CT is cut
    again after its voxels were changed under the same size and time, and after it was copied or its permissions were
    changed. File systems without that time (FAT, exFAT, those of Windows) do not show it.
    """
    return status.st_mtime_ns < item["changed_ns"]


def apply(steps: Sequence[Callable], data: dict[str, Any]) -> dict[str, Any]:
    """Apply transforms one after the other: a Compose takes longer to start than cutting a few candidates does."""
    seriesuid = data["seriesuid"]
    for step in steps:
        try:
            data = step(data)
        except (LunaError, MemoryError):
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise LunaError(f"series {seriesuid}: {type(step).__name__} fails ({reason})") from error
    return data


def build_series(path: Path, item: dict[str, Any], steps: Sequence[Callable]) -> None:
    """Cut all candidates of a series out of its CT and write its file, complete or not at all.

    Args:
        path: the file; what is there already is replaced.
        item: the series, of :func:`luna_monai.data.series_items`.
        steps: the deterministic transforms.

    Raises:
        LunaError: when the CT cannot be read, a transform fails, or the file cannot be written.
    """
    made = apply(steps, item)
    made_from = json.dumps({"series": series_description(item), "transforms": describe(steps)})
    write_tensors(path, {"image": made["image"], "center_irc": made["center_irc"], "made_from": made_from})


def open_mapped(path: Path) -> dict[str, Any]:
    """Map a file of the cache into memory and check that it is one.

    The voxels are not read: :func:`find_damage` compares their checksums.

    Args:
        path: the file.

    Returns:
        ``image``, int16 (n, 1, z, y, x) in HU; ``center_irc``, int64 (n, 3), z,y,x; ``made_from``, a dict.

    Raises:
        ValueError: when it is damaged, or its name says something else than its content.
    """
    try:
        entry = torch.load(path, mmap=True, weights_only=True)
        entry["made_from"] = made_from = json.loads(entry["made_from"])
        image, center_irc, series = entry["image"], entry["center_irc"], made_from["series"]
        count = len(series["center_xyz"])
        name = name_of(series["seriesuid"], hash_of(series), hash_of(made_from["transforms"]))
        shapes = (image.dtype, image.ndim, *image.shape[:2]), (center_irc.dtype, *center_irc.shape)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch, zip and pickle raise many kinds
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None
    if shapes != ((torch.int16, 5, count, 1), (torch.int64, count, 3)):
        raise ValueError(f"holds {image.dtype} {tuple(image.shape)}, expected {count} candidates in int16")
    if path.name != name:
        raise ValueError("its content belongs to another name")
    return entry  # type: ignore[no-any-return]


def find_damage(path: Path) -> str | None:
    """Read all of a file of the cache and compare it with its checksums (CRC-32, one for each tensor).

    Returns:
        What is wrong with it, or None.
    """
    try:
        open_mapped(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        return " ".join(str(error).split())[:120]
    return None if broken is None else f"the checksum of {Path(broken).name!r} inside it is wrong"
