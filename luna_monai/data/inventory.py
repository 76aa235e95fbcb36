"""What a cache folder holds: its manifest, what is needed, what is stale, and what is damaged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import (
    CachedFile,
    cached_files,
    describe,
    find_damage,
    hash_of,
    open_mapped,
    series_description,
)
from luna_monai.errors import LunaError
from luna_monai.files import abandoned_files, file_name_of, write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> Path:
    """Write ``manifest.json``: every file of the cache, what it was made from, versions, sizes and counts.

    It is made from what is in the folder, so that several writers, or none, cannot make it wrong for long.

    Args:
        folder: the cache folder.

    Returns:
        The manifest.

    Raises:
        LunaError: when it cannot be written.
    """
    path = folder / MANIFEST
    manifest = read_manifest(folder)
    while True:
        manifest = _describe_folder(folder, manifest)
        write_json(path, manifest, indent=1)
        # Another process may have finished a file, and written its manifest, between our look and our writing.
        if is_complete(folder, manifest):
            return path


def is_complete(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Tell whether a manifest lists the files that are in the folder, and no others."""
    return {file.path.name for file in cached_files(folder)} == manifest.get("files", {}).keys()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``manifest.json``; an empty dict when there is none or it is damaged, for it can be made again."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return manifest if isinstance(manifest["files"], dict) and isinstance(manifest["configurations"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _describe_folder(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Make a manifest; files that ``known``, an older one, describes are not opened again."""
    configurations: dict[str, Any] = {}
    files: dict[str, dict[str, Any]] = {}
    for file in cached_files(folder):
        try:
            size = file.path.stat().st_size
            entry: dict[str, Any] | None = known.get("files", {}).get(file.path.name)
            transforms = known.get("configurations", {}).get(file.transform_hash)
            if entry is None or transforms is None or entry["bytes"] != size:
                made_from = open_mapped(file.path)["made_from"]
                transforms = made_from["transforms"]
                series = made_from["series"]
                entry = {
                    "seriesuid": series["seriesuid"],
                    "candidates": len(series["center_xyz"]),
                    "candidates_hash": hash_of(series["center_xyz"]),
                    "scan_files": series["files"],
                    "versions": made_from["versions"],
                }
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            entry = {"seriesuid": file.seriesuid, "candidates": 0, "damage": str(error)}
        files[file.path.name] = entry | {"bytes": size, "configuration": file.transform_hash}
        configurations[file.transform_hash] = transforms or configurations.get(file.transform_hash, [])
    return {
        "series_total": len({entry["seriesuid"] for entry in files.values()}),
        "files_total": len(files),
        "candidates_total": sum(entry["candidates"] for entry in files.values()),
        "bytes_total": sum(entry["bytes"] for entry in files.values()),
        "configurations": configurations,
        "files": files,
    }


@dataclass(frozen=True)
class Inventory:
    """What a cache folder holds, seen from some configurations.

    Attributes:
        needed: files that at least one configuration reads.
        needed_bytes: their size.
        unneeded: path, size in bytes and reason of each other file of these series, and of each temporary file of
            a process that has ended.
        others: number of files of series that no configuration has, such as those of another dataset.
        missing: how many series each configuration would have to cut.
    """

    needed: list[CachedFile]
    needed_bytes: int
    unneeded: list[tuple[Path, int, str]]
    others: int
    missing: list[int]


def take_inventory(caches: Sequence[SeriesCache]) -> Inventory:
    """Compare a cache folder with the configurations that use it.

    Args:
        caches: a cache for each configuration, all in one folder; the reasons are those of the first.

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
    items = {file_name_of(item["seriesuid"]): item for cache in reversed(caches) for item in cache.data}
    needed: list[CachedFile] = []
    unneeded: list[tuple[Path, int, str]] = []
    needed_bytes = others = 0
    for file in cached_files(folder):
        try:
            size = file.path.stat().st_size
        except FileNotFoundError:
            continue
        if file.path.name in names:
            needed.append(file)
            needed_bytes += size
        elif file.seriesuid in items:
            unneeded.append((file.path, size, _change(file, items[file.seriesuid], caches[0])))
        else:
            others += 1
    unneeded += [(path, path.stat().st_size, "left by a killed process") for path in abandoned_files(folder)]
    return Inventory(needed, needed_bytes, unneeded, others, [len(cache.missing()) for cache in caches])


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


def explain_missing(cache: SeriesCache, missing: Sequence[int]) -> list[str]:
    """Name what has changed where the cache holds a file of a series, but not the one that is needed.

    Args:
        cache: the cache.
        missing: numbers of the series that it has no file of.

    Returns:
        A line for each kind of change.
    """
    if cache.cache_dir is None:
        return []
    held = {file.seriesuid: file for file in cached_files(cache.cache_dir)}
    items = {file_name_of(cache.data[index]["seriesuid"]): cache.data[index] for index in missing}
    changes = Counter(_change(held[name], item, cache) for name, item in items.items() if name in held)
    return [f"{count} series are cut again: {change}" for change, count in changes.items()]


def _change(file: CachedFile, item: Mapping[str, Any], cache: SeriesCache) -> str:
    """Name what has changed since a file was made."""
    try:
        made_from = open_mapped(file.path)["made_from"]
    except (ValueError, OSError) as error:
        return f"damaged ({error})"
    found = []
    if file.transform_hash != cache.transform_hash:
        found += _differences(made_from["transforms"], describe(cache.steps)) or ["other transforms"]
    now = series_description(item)
    found += ["the CT has changed"] if made_from["series"]["files"] != now["files"] else []
    found += ["its candidates have changed"] if made_from["series"]["center_xyz"] != now["center_xyz"] else []
    return ", ".join(found) or "made by no configuration"


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name what differs between two descriptions, as ``ClipIntensityRanged.clipper.a_max 1000 -> 400``."""
    if isinstance(before, dict) and isinstance(now, dict) and before.get("_target_") == now.get("_target_"):
        label = name or str(now.get("_target_", "?")).split()[0].rsplit(".", 1)[-1]
        keys = sorted(before.keys() | now.keys())
        return [part for key in keys for part in _differences(before.get(key), now.get(key), f"{label}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and not name:
        return [part for pair in zip(before, now, strict=True) for part in _differences(*pair)]
    return [] if before == now else [f"{name} {json.dumps(before)[:80]} -> {json.dumps(now)[:80]}".strip()]
