"""One file of the cache: what its name is made of, what is in it, and whether it is whole."""

from __future__ import annotations

import copyreg
import enum
import errno
import hashlib
import importlib.metadata
import inspect
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np
import torch
from monai.data.utils import json_hashing

from luna_monai.errors import LunaError
from luna_monai.files import atomic_write, file_name_of

_FORMAT = 2  # of the files; another number gives every file another name
_HASH_LENGTH = 16  # hexadecimal digits: 64 bits, in a folder that holds thousands of files
_HASH = f"[0-9a-f]{{{_HASH_LENGTH}}}"
_NAME = re.compile(rf"(?P<seriesuid>.+)\.(?P<series>{_HASH})\.(?P<transforms>{_HASH})\.pt")
_PACKAGES = ("luna-monai", "monai", "torch", "numpy", "simpleitk")
_RELEASED = ("monai", "luna_monai", "torch", "numpy", "builtins", "copyreg", "functools")
_SAMPLES, _SAMPLE_BYTES = 4, 4096


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
        LunaError: for a lambda, a local function or class, whose changes cannot be seen.
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):
        return [describe(entry) for entry in sorted(value, key=repr)]
    if isinstance(value, Sequence):
        return [describe(entry) for entry in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    if isinstance(value, (type, FunctionType)):
        return _describe_code(value)
    try:
        reduced = value.__reduce_ex__(2)
    except (TypeError, ValueError):
        reduced = repr(value)
        if " at 0x" in reduced:
            raise LunaError(f"a cached transform holds {reduced}, which cannot be described") from None
    if isinstance(reduced, str):
        return reduced
    maker, *content = reduced
    if maker is copyreg.__newobj__ and len(content[0]) == 1 and isinstance(content[1], dict):  # type: ignore[attr-defined]
        return {"_target_": describe(type(value))} | describe(content[1])
    return {"_target_": describe(type(value)), "state": describe([entry for entry in content if entry is not None])}


def _describe_code(value: type | FunctionType) -> str:
    name = f"{value.__module__}.{value.__qualname__}"
    if "<" in name:
        raise LunaError(
            f"a cached transform holds {name}, whose changes cannot be seen; use a class or a function of a module"
        )
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
    """Describe what a series is cut from, wherever the dataset folder is mounted.

    Args:
        item: an item of :func:`luna_monai.data.series_items`.

    Returns:
        The series, its CT's files and its candidates.
    """
    points = np.asarray(item["center_xyz"]).tolist()
    return {"seriesuid": item["seriesuid"], "files": item["files"], "center_xyz": points}


def series_hashing(item: Mapping[str, Any]) -> bytes:
    """Hash one series; the ``hash_func`` of a ``PersistentDataset``."""
    return hash_of(series_description(item)).encode()


def hash_of(description: Any) -> str:
    """Hash a description of transforms or of a series."""
    return json_hashing([_FORMAT, description])[:_HASH_LENGTH].decode()


def fingerprint(path: Path) -> dict[str, Any]:
    """Tell a file by its size, its time of modification and a hash of four samples of 4 KiB, spread evenly.

    Size and time stay the same where a file is replaced and its time is set back. Reading all voxels would take longer
    than cutting the candidates, so a change of a few voxels alone is then not seen.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.blake2b(digest_size=8)
        for number in range(_SAMPLES):
            file.seek(int((number + 0.5) * status.st_size / _SAMPLES))
            digest.update(file.read(_SAMPLE_BYTES))
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "samples": digest.hexdigest()}


@dataclass(frozen=True)
class CachedFile:
    """What the name of a file of the cache says.

    Attributes:
        path: the file.
        seriesuid: the series, as in names of files.
        series_hash: hash of the CT's files and the candidates that it was made from.
        transform_hash: hash of the deterministic transforms that it was made by.
    """

    path: Path
    seriesuid: str
    series_hash: str
    transform_hash: str


def name_of(seriesuid: str, series_hash: str, transform_hash: str) -> str:
    """Name the file of a series."""
    return f"{file_name_of(seriesuid)}.{series_hash}.{transform_hash}.pt"


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """List the files of a cache folder in the order of their names; other files are passed over."""
    for name in sorted(entry.name for entry in os.scandir(folder)):
        found = _NAME.fullmatch(name)
        if found is not None and not name.startswith("."):
            yield CachedFile(folder / name, found["seriesuid"], found["series"], found["transforms"])


def package_versions() -> dict[str, str]:
    """Tell the versions of the packages that cut candidates."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            continue
    return versions


def cut_series(item: dict[str, Any], steps: Sequence[Callable]) -> dict[str, Any]:
    """Cut all candidates of a series out of its CT.

    Args:
        item: the series, of :func:`luna_monai.data.series_items`.
        steps: the deterministic transforms.

    Returns:
        ``image``, int16 (n, 1, z, y, x) in HU, ``center_irc``, int64 (n, 3), z,y,x, and ``made_from``, the description
        of the series and the transforms.

    Raises:
        LunaError: when the CT cannot be read, or a transform fails.
    """
    made = apply(steps, item)
    made_from = {"series": series_description(item), "transforms": describe(steps)}
    return {"image": made["image"], "center_irc": made["center_irc"], "made_from": made_from}


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


def save(file: BinaryIO, image: torch.Tensor, center_irc: torch.Tensor, made_from: Mapping[str, Any]) -> None:
    """Write the content of a file of the cache: what :func:`cut_series` returns, and the versions of the packages."""
    described = json.dumps({**made_from, "versions": package_versions()})
    torch.save({"image": image, "center_irc": center_irc, "made_from": described}, file)


def build_series(path: Path, item: dict[str, Any], steps: Sequence[Callable]) -> None:
    """Cut a series and write its file, whole or not at all, whatever is there already.

    Args:
        path: the file.
        item: as in :func:`cut_series`.
        steps: as in :func:`cut_series`.

    Raises:
        LunaError: when the CT cannot be read, or the file cannot be written.
    """
    made = cut_series(item, steps)
    try:
        with atomic_write(path) as file:
            save(file, **made)
    except (OSError, RuntimeError) as error:
        raise LunaError(f"{path}: cannot be written ({_reason(error)})") from None


def _reason(error: BaseException) -> str:
    # torch's writer turns what the disk said into a RuntimeError of its own, with the OSError behind it or not at all.
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno is not None:
            advice = {
                errno.ENOSPC: "free some space or choose another cache_dir",
                errno.EACCES: "choose a cache_dir that you may write to",
                errno.EROFS: "choose a cache_dir that you may write to",
            }.get(current.errno, "check the disk or choose another cache_dir")
            return f"{os.strerror(current.errno)}; {advice}"
        current = current.__cause__ or current.__context__
    return f"{' '.join(str(error).split())[:120]}; free some space or choose another cache_dir"


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
        made_from = json.loads(entry["made_from"])
        image, center_irc, series = entry["image"], entry["center_irc"], made_from["series"]
        count = len(series["center_xyz"])
        name = name_of(series["seriesuid"], hash_of(series), hash_of(made_from["transforms"]))
        shapes = (image.dtype, image.ndim, *image.shape[:2]), (center_irc.dtype, *center_irc.shape)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever torch, zip and pickle say about bytes that are not theirs
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None
    if shapes != ((torch.int16, 5, count, 1), (torch.int64, count, 3)):
        raise ValueError(f"holds {image.dtype} {tuple(image.shape)}, expected {count} candidates in int16")
    if path.name != name:
        raise ValueError("its content belongs to another name")
    return {"image": image, "center_irc": center_irc, "made_from": made_from}


def find_damage(path: Path) -> str | None:
    """Read all of a file and compare it with its checksums (CRC-32, one for each tensor).

    Args:
        path: a file of the cache.

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
