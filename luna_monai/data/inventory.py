"""What of a cache folder is needed, what is stale and why, and what is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import CachedFile, cached_files, find_damage
from luna_monai.data.manifest import changes
from luna_monai.data.precache import abandoned_files
from luna_monai.errors import LunaError


@dataclass(frozen=True)
class Unneeded:
    """A file that no configuration needs.

    Attributes:
        path: the file.
        bytes: its size.
        reason: why not.
    """

    path: Path
    bytes: int
    reason: str


@dataclass(frozen=True)
class Inventory:
    """What a cache folder holds, seen from some configurations.

    Attributes:
        needed: files that at least one configuration reads.
        needed_bytes: their size.
        unneeded: the others, and what killed processes have left.
        missing: how many series each configuration would have to cut.
    """

    needed: list[CachedFile]
    needed_bytes: int
    unneeded: list[Unneeded]
    missing: list[int]


def take_inventory(caches: Sequence[SeriesCache]) -> Inventory:
    """Compare a cache folder with the configurations that use it.

    Args:
        caches: a cache for each configuration, all in one folder; the reasons are told from the first.

    Returns:
        What is needed and what is not.

    Raises:
        LunaError: when the caches have no folder, or several.
    """
    folders = {cache.cache_dir for cache in caches}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is None:
        raise LunaError("cache_dir is null, or not the same in all configurations: there is no cache to look at")
    names = {cache.path_of(index).name for cache in caches for index in range(len(cache.data))}
    first = caches[0]
    items = {item["seriesuid"]: item for item in first.data}
    transforms = first.transform_description
    needed, unneeded, needed_bytes = [], [], 0
    for file in cached_files(folder):
        try:
            size = file.path.stat().st_size
        except FileNotFoundError:
            continue
        if file.path.name in names:
            needed.append(file)
            needed_bytes += size
            continue
        item = items.get(file.seriesuid)
        if item is None:
            reason = "its series is not among those with a CT and candidates"
        else:
            reason = changes(file, item, first.transform_hash, transforms) or "made by no configuration"
        unneeded.append(Unneeded(file.path, size, reason))
    unneeded.extend(Unneeded(path, path.stat().st_size, "left by a killed process") for path in abandoned_files(folder))
    return Inventory(needed, needed_bytes, unneeded, [len(cache.missing()) for cache in caches])


def verify(
    folder: Path, progress: Callable[[Iterable[Any], str, int], Iterator[tuple[int, Any]]] | None = None
) -> dict[Path, str]:
    """Read every file of a cache folder and compare it with its checksums.

    Args:
        folder: the cache folder.
        progress: wraps the iterable of files to show how far it is, as ``progress(iterable, description, total)``, and
            yields numbers and files.

    Returns:
        What is wrong with each damaged file; empty when all are whole.
    """
    files = list(cached_files(folder))
    numbered = enumerate(files) if progress is None else progress(files, "verify", len(files))
    damage = {file.path: find_damage(file.path) for _, file in numbered}
    return {path: reason for path, reason in damage.items() if reason is not None}
