"""Files of the cache: their names, their content and checks for damage."""

import hashlib
import inspect
import io
import json
import logging
import pickle
import re
import sys
import zipfile
import zlib
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from luna_monai.errors import LunaError, reason_of
from luna_monai.files import abandoned_files, write_tensors

logger = logging.getLogger(__name__)

_FORMAT = b"4"  # version of the file format; a new version changes the names of all files
_NAME = re.compile(r"[^.].*\.[0-9a-f]{16}\.[0-9a-f]{16}\.pt")
#: Packages whose classes and functions are identified by name. For all others, the source of the module is hashed too.
_RELEASED = {"monai", "luna_monai", "torch", "numpy", *sys.stdlib_module_names}


class _Fingerprint(pickle.Pickler):
    """Pickler that turns equal objects into equal bytes, and collects the modules of their classes and functions."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=4)
        self.fast = True  # without a memo, which would make the bytes depend on the identity of objects
        self.modules: set[str] = set()

    def reducer_override(self, value: Any) -> Any:
        """Record the module of a class or function, and pickle it by name as usual."""
        if isinstance(value, (type, FunctionType)):
            self.modules |= {each.__module__ for each in getattr(value, "__mro__", [value])}
        return NotImplemented


def transform_hashing(transforms: Sequence[Any]) -> bytes:
    """Hash transforms with all their parameters; used as the ``hash_transform`` of a ``PersistentDataset``.

    Raises:
        LunaError: for a lambda or a local function or class, whose changes cannot be detected, and for objects that
            cannot be pickled.
    """
    pickler = _Fingerprint(content := io.BytesIO())
    try:
        pickler.dump(list(transforms))
        own = sorted(name for name in pickler.modules if name.partition(".")[0] not in _RELEASED)
        sources = [inspect.getsource(sys.modules[name]).encode() for name in own]
    except Exception as error:  # pickling raises many types
        raise LunaError(f"transforms cannot be cached: {error}; use classes and functions of modules") from error
    return hash_of(content.getvalue(), *sources).encode()


def series_hashing(item: Mapping[str, Any]) -> bytes:
    """Hash the CT files and candidates of a series; used as the ``hash_func`` of a ``PersistentDataset``.

    The hash does not depend on the location of the dataset folder.
    """
    files = json.dumps([item["seriesuid"], item["files"]]).encode()
    return hash_of(files, np.asarray(item["center_xyz"], dtype="<f8").tobytes()).encode()


def hash_of(*parts: bytes) -> str:
    """Return a 64-bit hash as hexadecimal digits, which is sufficient for the thousands of files in a folder."""
    return hashlib.sha256(b"\0".join([_FORMAT, *parts])).hexdigest()[:16]


def cached_files(folder: Path) -> list[Path]:
    """List the cache files in a folder, sorted by name; other files are ignored."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def apply(steps: Sequence[Callable], data: dict[str, Any]) -> dict[str, Any]:
    """Apply transforms one after the other, without a Compose, whose start takes longer than cropping candidates."""
    return reduce(lambda done, step: step(done), steps, data)


def build_series(path: Path, item: dict[str, Any], steps: Sequence[Callable]) -> None:
    """Crop all candidates of a series from its CT, and write its file atomically.

    Args:
        path: the file; an existing file is replaced.
        item: the series, an item of :func:`luna_monai.data.series_items`.
        steps: the deterministic transforms.

    Raises:
        LunaError: when the CT cannot be read, a transform fails, or the file cannot be written.
    """
    made = apply(steps, item)
    content = {"image": made["image"], "center_irc": made["center_irc"], "name": path.name}
    write_tensors(path, content | {"made_by": dict(ChainMap(*map(_parameters, steps)))})


def _parameters(value: Any, name: str = "") -> dict[str, str]:
    """Describe the parameters of a transform and of transforms inside it, to explain why a file is stale."""
    if not isinstance(value, Transform):
        return {name: str(value).partition(" at 0x")[0]}  # without the address of an object
    name = name.partition(".")[0] or type(value).__name__
    return dict(ChainMap(*(_parameters(inner, f"{name}.{key}") for key, inner in vars(value).items())))


def open_mapped(path: Path) -> dict[str, Any]:
    """Map a cache file into memory and check that it is valid.

    The voxels are not read; :func:`find_damage` verifies their checksums.

    Args:
        path: the file.

    Returns:
        ``image``, int16 (n, 1, z, y, x) in HU; ``center_irc``, int64 (n, 3), z, y, x; and ``name``, the file name.

    Raises:
        ValueError: when the file is damaged, or was written under another name.
    """
    try:
        entry: dict[str, Any] = torch.load(path, mmap=True, weights_only=True)
        image, center_irc = entry["image"], entry["center_irc"]
        found = entry["name"], image.dtype, image.ndim, *image.shape[:2], *center_irc.shape
    except Exception as error:  # torch, zip and pickle raise many types
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None
    if found != (path.name, torch.int16, 5, len(image), 1, len(image), 3):
        raise ValueError("its content does not match its name")
    return entry


def find_damage(path: Path) -> str | None:
    """Read a whole cache file and verify its checksums (CRC-32, one per tensor).

    Args:
        path: the file.

    Returns:
        A description of the damage, or None; also None, with a warning, for a file that cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        open_mapped(path)
    except OSError as error:  # the file may be intact
        logger.warning("%s: cannot be read (%s) and was not verified", path, reason_of(error))
        return None
    except (ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        return " ".join(str(error).split())[:120]
    return None if broken is None else f"the checksum of {Path(broken).name!r} inside it is wrong"


def take_inventory(caches: Sequence[Any]) -> tuple[list[Path], dict[Path, str]]:
    """Compare a cache folder with the configurations that use it.

    Args:
        caches: the :class:`~luna_monai.data.SeriesCache` of each configuration, all in the same folder.

    Returns:
        The files that at least one configuration reads; and the unneeded files with the reason: other files of these
        series, and temporary files of processes that have ended. Files of other series are ignored.
    """
    wanted = {name for cache in caches for name in cache.names}
    series = {name.rsplit(".", 3)[0] for name in wanted}
    files = [path for path in cached_files(caches[0].cache_dir) if path.name.rsplit(".", 3)[0] in series]
    unneeded = {path: _why_stale(path, caches[0]) for path in files if path.name not in wanted}
    unneeded |= dict.fromkeys(abandoned_files(caches[0].cache_dir), "left by a killed process")
    return [path for path in files if path.name in wanted], unneeded


def _why_stale(path: Path, cache: Any) -> str:
    if path.name.rsplit(".", 2)[1] == cache.transform_hash:
        return "the CT or its candidates have changed"
    changed = ""
    with suppress(ValueError, KeyError):  # the file is damaged, or an earlier version wrote it
        before, now = open_mapped(path)["made_by"], ChainMap(*map(_parameters, cache.steps))
        changed = ", ".join(f"{key} {before[key]} -> {now[key]}" for key in before if before[key] != now.get(key))
    return changed or "created by other transforms"
