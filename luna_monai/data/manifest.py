"""What a cache folder holds, in words: its manifest, and what has changed since it was filled."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import CachedFile, cached_files, open_mapped
from luna_monai.data.hashing import hash_of, series_description
from luna_monai.files import write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_ABOUT = "What this folder holds, found out from the files themselves; it is written anew whenever they change."
_TOTALS = ("files", "candidates", "bytes")
_NAMED = 3  # changes that a summary names


def write_manifest(folder: Path) -> Path:
    """Write ``manifest.json``: every file of the cache, the configuration it was made by, versions, sizes and counts.

    It is made from what is in the folder, so that several writers, or none, can't make it wrong for long.

    Args:
        folder: the cache folder.

    Returns:
        The manifest.

    Raises:
        LunaError: when it can't be written.
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
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _describe_folder(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Make a manifest; files that ``known``, an older one, describes are not opened again."""
    configurations: dict[str, dict[str, Any]] = {}
    files: dict[str, dict[str, Any]] = {}
    for file in cached_files(folder):
        try:
            status = file.path.stat()
        except FileNotFoundError:
            continue
        size = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        entry = known.get("files", {}).get(file.path.name)
        transforms = known.get("configurations", {}).get(file.transform_hash, {}).get("transforms")
        if entry is None or transforms is None or any(entry.get(key) != value for key, value in size.items()):
            try:
                made_from = open_mapped(file.path)["made_from"]
            except (ValueError, OSError) as error:
                entry = {"seriesuid": file.seriesuid, "candidates": 0, "damage": str(error)}
            else:
                transforms = made_from["transforms"]
                entry = {
                    "seriesuid": file.seriesuid,
                    "candidates": len(made_from["series"]["center_xyz"]),
                    "candidates_hash": hash_of(made_from["series"]["center_xyz"]),
                    "scan_files": made_from["series"]["files"],
                    "versions": made_from["versions"],
                }
            entry |= {"configuration": file.transform_hash, **size}
        files[file.path.name] = entry
        total = configurations.setdefault(file.transform_hash, dict.fromkeys(_TOTALS, 0))
        total["transforms"] = transforms or total.get("transforms")
        total["files"] += 1
        total["candidates"] += entry["candidates"]
        total["bytes"] += entry["bytes"]
    return {
        "about": _ABOUT,
        "series_total": len({entry["seriesuid"] for entry in files.values()}),
        **{f"{name}_total": sum(total[name] for total in configurations.values()) for name in _TOTALS},
        "configurations": configurations,
        "files": files,
    }


def changes(file: CachedFile, item: Mapping[str, Any], transform_hash: str, transforms: Sequence[Any]) -> str:
    """Tell what has changed since a file of the cache was made.

    Args:
        file: of the series of ``item``.
        item: the series as it is now, from :func:`~luna_monai.data.series_items`.
        transform_hash: hash of the transforms as they are now.
        transforms: their description.

    Returns:
        The changes, separated by "; "; empty when the file is valid.
    """
    try:
        made_from = open_mapped(file.path)["made_from"]
    except (ValueError, OSError) as error:
        return f"damaged ({error})"
    found = []
    if file.transform_hash != transform_hash:
        found.append(f"transforms: {_difference(made_from['transforms'], list(transforms))}")
    before, now = made_from["series"], series_description(item)
    if before["files"] != now["files"]:
        found.append(f"CT: {_changed_files(before['files'], now['files'])}")
    if before["center_xyz"] != now["center_xyz"]:
        gone, new = (
            Counter(map(tuple, one["center_xyz"])) - Counter(map(tuple, other["center_xyz"]))
            for one, other in ((before, now), (now, before))
        )
        order = "" if gone or new else ", in another order"
        found.append(
            f"candidates: {len(now['center_xyz'])}, {new.total()} of them new; "
            f"{len(before['center_xyz'])} before, {gone.total()} of them gone{order}"
        )
    return "; ".join(found)


def explain_missing(cache: SeriesCache, missing: Sequence[int]) -> list[str]:
    """Tell why series that the cache once held are missing now.

    Args:
        cache: the cache.
        missing: numbers of the series that it has no file of.

    Returns:
        A line for each kind of change, with the number of series and a few of them; nothing about series that the
        folder never held.
    """
    if cache.cache_dir is None or not missing:
        return []
    held: dict[str, list[CachedFile]] = {}
    for file in cached_files(cache.cache_dir):
        held.setdefault(file.seriesuid, []).append(file)
    transforms = cache.transform_description
    series_of_change: dict[str, list[str]] = {}
    seen: dict[tuple[str, str], str] = {}
    for index in missing:
        item = cache.data[index]
        files = held.get(item["seriesuid"], [])
        if not files:
            continue
        # The nearest: made by the same transforms if there is one, else from the same series, else the last one.
        series_hash = cache.hash_func(item).decode()
        nearest = max(
            files,
            key=lambda file: (
                file.transform_hash == cache.transform_hash,
                file.series_hash == series_hash,
                file.path.stat().st_mtime_ns,
            ),
        )
        # Where the transforms alone have changed, all series tell the same: one is enough.
        key = (nearest.transform_hash, "" if nearest.series_hash == series_hash else item["seriesuid"])
        if key not in seen:
            seen[key] = changes(nearest, item, cache.transform_hash, transforms)
        series_of_change.setdefault(seen[key], []).append(item["seriesuid"])
    return list(_summarize(series_of_change))


def _summarize(series_of_change: Mapping[str, Sequence[str]]) -> Iterator[str]:
    by_kind: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for change, series in series_of_change.items():
        by_kind.setdefault(change.split(":")[0].split(" ")[0], []).append((change, series))
    for entries in by_kind.values():
        for change, series in entries[:_NAMED]:
            name = series[0] if len(series) == 1 else f"{len(series)} series"
            yield f"{name}: cut again, because of other {change}"
        rest = sum(len(series) for _, series in entries[_NAMED:])
        if rest:
            yield f"{rest} more series: cut again for the like reason"


def _changed_files(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    old = {file["path"]: file for file in before}
    new = {file["path"]: file for file in now}
    parts = [f"{path} instead of {', '.join(sorted(old.keys() - new.keys()))}" for path in sorted(new.keys() - old)]
    for path in sorted(old.keys() & new):
        if old[path] != new[path]:
            parts.append(f"{path} is {_look(new[path])}, was {_look(old[path])}")
    return ", ".join(parts)


def _look(file: Mapping[str, Any]) -> str:
    return f"{file['bytes']:,} bytes of {datetime.fromtimestamp(file['modified_ns'] / 1e9):%Y-%m-%d %H:%M:%S}"


def _difference(before: Any, now: Any, name: str = "") -> str:
    """Name what differs between two descriptions, as ``ClipIntensityRanged.clipper.a_max 1000 -> 400``."""
    if isinstance(before, dict) and isinstance(now, dict) and before.get("_target_") == now.get("_target_"):
        label = name or str(now.get("_target_", "")).rsplit(".", 1)[-1]
        keys = sorted(before.keys() | now.keys())
        parts = [_difference(before.get(key), now.get(key), f"{label}.{key}") for key in keys]
        return ", ".join(part for part in parts if part)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        if before == now:
            return ""
        if all(isinstance(entry, dict) for entry in (*before, *now)):
            parts = [_difference(one, other, name) for one, other in zip(before, now, strict=True)]
            return ", ".join(part for part in parts if part)
    return "" if before == now else f"{name} {_short(before)} -> {_short(now)}".strip()


def _short(value: Any) -> str:
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rsplit(".", 1)[-1]
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return json.dumps(value)
