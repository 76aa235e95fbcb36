"""One file of the cache: its name, what is in it, and whether it is whole."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from luna_monai.data.hashing import HASH_LENGTH, hash_of
from luna_monai.errors import LunaError
from luna_monai.files import atomic_write

_HASH = f"[0-9a-f]{{{HASH_LENGTH}}}"
_NAME = re.compile(rf"(?P<seriesuid>.+)\.(?P<series>{_HASH})\.(?P<transforms>{_HASH})\.pt")
_PACKAGES = ("luna-monai", "monai", "torch", "numpy", "simpleitk")


@dataclass(frozen=True)
class CachedFile:
    """What the name of a file of the cache says.

    Attributes:
        path: the file.
        seriesuid: the series.
        series_hash: hash of the CT's files and the candidates that it was made from.
        transform_hash: hash of the deterministic transforms that it was made by.
    """

    path: Path
    seriesuid: str
    series_hash: str
    transform_hash: str


def name_of(seriesuid: str, series_hash: str, transform_hash: str) -> str:
    """Name the file of a series."""
    return f"{seriesuid}.{series_hash}.{transform_hash}.pt"


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """List the files of a cache folder in the order of their names; whatever else lies there is passed over."""
    for name in sorted(entry.name for entry in os.scandir(folder)):
        found = _NAME.fullmatch(name)
        if found is not None:
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


def save(file: BinaryIO, image: torch.Tensor, center_irc: torch.Tensor, made_from: Mapping[str, Any]) -> None:
    """Write the content of a file of the cache.

    Args:
        file: open for writing.
        image: int16 (n, 1, z, y, x) in HU.
        center_irc: int64 (n, 3), z,y,x.
        made_from: ``series``, a :func:`~luna_monai.data.hashing.series_description`, and ``transforms``, their
            description; the versions of the packages are added.
    """
    described = json.dumps({**made_from, "versions": package_versions()})
    torch.save({"image": image, "center_irc": center_irc, "made_from": described}, file)


def write(path: Path, image: torch.Tensor, center_irc: torch.Tensor, made_from: Mapping[str, Any]) -> None:
    """Write a file of the cache, whole or not at all; see :func:`save`.

    Raises:
        LunaError: when it can't be written.
    """
    try:
        with atomic_write(path) as file:
            save(file, image, center_irc, made_from)
    except (OSError, RuntimeError) as error:
        raise LunaError(f"{path}: can't be written ({_reason(error)})") from None


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
        hashes = (hash_of(series), hash_of(made_from["transforms"]))
        seriesuid = series["seriesuid"]
        shapes = (image.dtype, image.ndim, *image.shape[:2]), (center_irc.dtype, *center_irc.shape)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever torch, zip and pickle say about bytes that are not theirs
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None
    if shapes != ((torch.int16, 5, count, 1), (torch.int64, count, 3)):
        raise ValueError(f"holds {image.dtype} {tuple(image.shape)}, expected {count} candidates in int16")
    if path.name != name_of(seriesuid, *hashes):
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
