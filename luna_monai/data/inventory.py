"""What a cache folder holds: what is needed, what is stale and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luna_monai.data.cache import SeriesCache
from luna_monai.data.cache_files import CachedFile, cached_files, describe, open_mapped, series_description
from luna_monai.files import abandoned_files, file_name_of


def take_inventory(caches: Sequence[SeriesCache]) -> tuple[list[Path], dict[Path, str]]:
    """Compare a cache folder with the configurations that use it.

    Args:
        caches: a cache for each configuration, all in one folder; the reasons are those of the first.

    Returns:
        The files that at least one configuration reads; and other files of these series, and temporary files of
        processes that have ended, each with the reason. Files of other series are passed over.
    """
    names = {cache.path_of(index).name for cache in caches for index in range(len(cache.data))}
    items = {file_name_of(item["seriesuid"]): item for cache in reversed(caches) for item in cache.data}
    files = list(cached_files(caches[0].cache_dir))
    unneeded = {
        file.path: explain(file, items[file.seriesuid], caches[0])
        for file in files
        if file.path.name not in names and file.seriesuid in items
    }
    unneeded |= dict.fromkeys(abandoned_files(caches[0].cache_dir), "left by a killed process")
    return [file.path for file in files if file.path.name in names], unneeded


def explain(file: CachedFile, item: Mapping[str, Any], cache: SeriesCache) -> str:
    """Name the first input that has changed since a file was made, as ``transforms.2.clipper.a_max 1000 -> 400``.

    Args:
        file: a file of the cache.
        item: its series as it is now.
        cache: the cache that needs another file.
    """
    try:
        made_from = open_mapped(file.path)["made_from"]
    except (ValueError, OSError) as error:
        return f"damaged ({error})"
    if file.transform_hash != cache.transform_hash:
        return _difference(made_from["transforms"], describe(cache.steps), "transforms")
    has_moved = made_from["series"]["center_xyz"] != series_description(item)["center_xyz"]
    return "its candidates have changed" if has_moved else "the CT has changed"


def _difference(before: Any, now: Any, name: str) -> str:
    if isinstance(before, list) and isinstance(now, list):
        before, now = dict(enumerate(before)), dict(enumerate(now))
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        key = next((key for key in before if before[key] != now[key]), None)
        return name if key is None else _difference(before[key], now[key], f"{name}.{key}")
    return f"{name} {json.dumps(before)[:80]} -> {json.dumps(now)[:80]}"
