"""One file of the cache: what its name is made of, what is in it, and whether it is complete."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import pickle
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch

from luna_monai.errors import LunaError
from luna_monai.files import abandoned_files, write_tensors

_FORMAT = b"4"  # of the files; another number gives every file another name
_NAME = re.compile(r"[^.].*\.[0-9a-f]{16}\.[0-9a-f]{16}\.pt")
#: Packages whose classes and functions are known by name; those of all others by the source of their module too.
_RELEASED = {"monai", "luna_monai", "torch", "numpy", *sys.stdlib_module_names}


class _Fingerprint(pickle.Pickler):
    """Pickles equal objects to equal bytes, and collects the modules of the classes and functions in them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.fast = True  # without a memo, by which the bytes would depend on which objects are the same one
        self.modules: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        """Note where a class or function is from; it is pickled by its name as always."""
        if isinstance(value, (type, FunctionType)):
            self.modules |= {each.__module__ for each in getattr(value, "__mro__", [value])}
        return NotImplemented


def transform_hashing(transforms: Sequence[Any]) -> bytes:
    """Hash transforms with all their parameters; the ``hash_transform`` of a ``PersistentDataset``.

    Raises:
        LunaError: for a lambda, a local function or class, whose changes cannot be seen, and for what has no content.
    """
    pickler = _Fingerprint(content := io.BytesIO())
    try:
        pickler.dump(list(transforms))
        own = sorted(name for name in pickler.modules if name.partition(".")[0] not in _RELEASED)
        sources = [inspect.getsource(sys.modules[name]).encode() for name in own]
    except Exception as error:  # objects raise many kinds
        raise LunaError(f"transforms cannot be cached: {error}; use classes and functions of modules") from error
    return hash_of(content.getvalue(), *sources).encode()


def series_hashing(item: Mapping[str, Any]) -> bytes:
    """Hash what a series is cut from, wherever the dataset folder is; the ``hash_func`` of a ``PersistentDataset``."""
    files = json.dumps([item["seriesuid"], item["files"]]).encode()
    return hash_of(files, np.asarray(item["center_xyz"], dtype="<f8").tobytes()).encode()


def hash_of(*parts: bytes) -> str:
    """Hash the inputs of files: 64 bits, in a folder that holds thousands of files."""
    return hashlib.sha256(b"\0".join([_FORMAT, *parts])).hexdigest()[:16]


def cached_files(folder: Path) -> list[Path]:
    """List the files of a cache folder in the order of their names; other files are passed over."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def apply(steps: Sequence[Callable], data: dict[str, Any]) -> dict[str, Any]:
    """Apply transforms one after the other: a Compose takes longer to start than cutting a few candidates does."""
    return reduce(lambda done, step: step(done), steps, data)


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
    write_tensors(path, {"image": made["image"], "center_irc": made["center_irc"], "name": path.name})


def open_mapped(path: Path) -> dict[str, Any]:
    """Map a file of the cache into memory and check that it is one.

    The voxels are not read: :func:`find_damage` compares their checksums.

    Args:
        path: the file.

    Returns:
        ``image``, int16 (n, 1, z, y, x) in HU; ``center_irc``, int64 (n, 3), z,y,x; ``name``, that of the file.

    Raises:
        ValueError: when it is damaged, or was written under another name.
    """
    try:
        entry: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
        image, center_irc = entry["image"], entry["center_irc"]
        found = entry["name"], image.dtype, image.ndim, *image.shape[:2], *center_irc.shape
    except Exception as error:  # torch, zip and pickle raise many kinds
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None
    if found != (path.name, torch.int16, 5, len(image), 1, len(image), 3):
        raise ValueError("its content belongs to another name")
    return entry


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


def take_inventory(folder: Path, names: Sequence[Sequence[str]]) -> tuple[list[Path], dict[Path, str]]:
    """Compare a cache folder with the configurations that use it.

    Args:
        folder: of the cache.
        names: of the files that each configuration needs.

    Returns:
        The files that at least one configuration reads; and other files of these series, and temporary files of
        processes that have ended, each with the reason. Files of other series are passed over.
    """
    wanted = {name for each in names for name in each}
    transforms_of = {name.rsplit(".", 3)[0]: name.rsplit(".", 2)[1] for each in reversed(names) for name in each}
    needed, unneeded = [], {}
    for path in cached_files(folder):
        series, _, transforms, _ = path.name.rsplit(".", 3)
        if path.name in wanted:
            needed.append(path)
        elif series in transforms_of:
            is_same = transforms == transforms_of[series]
            unneeded[path] = "the CT or its candidates have changed" if is_same else "made by other transforms"
    return needed, unneeded | dict.fromkeys(abandoned_files(folder), "left by a killed process")
