"""Pre-caching: the plan, its parts, and what is left behind."""

import logging
import os
import time

import psutil
import pytest
from monai.transforms import Transform

from luna_monai.data import Precache, SeriesCache, precache, read_candidates, series_items
from luna_monai.data.cache_files import build_series, cached_files
from luna_monai.errors import LunaError
from luna_monai.files import atomic_write
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand


def open_cache(dataset_dir, cache_dir, a_max=1000, spatial_size=(32, 48, 48), more=()):
    transforms = [
        LoadScand("image"),
        CropCandidatesd("image", spatial_size),
        ClipIntensityRanged("image", -1000, a_max),
    ]
    return SeriesCache(series_items(read_candidates(dataset_dir), dataset_dir), [*transforms, *more], cache_dir)


def test_plan(make_dataset, tmp_path):
    cache = open_cache(make_dataset(scans=4, candidates=9), tmp_path / "cache")
    build_series(*cache.job(2))
    assert Precache(cache).missing() == [0, 1, 3]
    assert Precache(cache).worker_bytes([0, 1, 3]) >= 9 * 147_456


def test_memory_of_a_worker_is_that_of_the_uncompressed_scan(make_dataset, tmp_path):
    sizes = {"raw": (256, 64, 64), "zraw": (256, 64, 64)}
    needs = {
        kind: Precache(
            open_cache(make_dataset(scans=1, shape=shape, name=kind, compressed=kind == "zraw"), tmp_path / "cache")
        ).worker_bytes([0])
        for kind, shape in sizes.items()
    }
    # Voxels of the raw file are mapped and take no memory.
    assert needs["zraw"] == needs["raw"] + 2 * 256 * 64 * 64


def test_dry_run_leaves_nothing(make_dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cache = open_cache(make_dataset(), tmp_path / "cache")
    Precache(cache).show_plan()
    assert "3 series to add: 36 candidates" in caplog.text
    assert not list((tmp_path / "cache").iterdir())
    assert len(cache.missing()) == 3


def test_dry_run_without_a_folder(make_dataset):
    with pytest.raises(LunaError, match="cache_dir is null"):
        Precache(open_cache(make_dataset(), None)).show_plan()


def test_log_says_that_there_is_no_cache(make_dataset, caplog):
    caplog.set_level(logging.INFO)
    assert Precache(open_cache(make_dataset(), None)).run() == 0
    assert "cache_dir is null" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_progress_and_rate(make_dataset, tmp_path, caplog, num_workers):
    caplog.set_level(logging.INFO)
    cache = open_cache(make_dataset(scans=5), tmp_path / "cache")
    assert Precache(cache, num_workers).run() == 5
    text = caplog.text
    assert "cache    4/5, done at" in text
    assert cache.missing() == []
    assert Precache(cache).run() == 0


class Slow(Transform):
    """Take longer than a user should wait for a line."""

    def __call__(self, data):
        time.sleep(1)
        return data


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_line_comes_within_a_scan(make_dataset, tmp_path, caplog, monkeypatch, num_workers):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(precache, "_LOG_INTERVAL_S", 0.2)
    cache = open_cache(make_dataset(scans=1), tmp_path / "cache", more=[Slow()])
    Precache(cache, num_workers).run()
    assert "cache: 1 series left after 0:00:0" in caplog.text


def test_shards_and_subsets_divide_the_work(make_dataset, tmp_path):
    cache = open_cache(make_dataset(scans=7), tmp_path / "cache")
    parts = [Precache(cache, shard=(part, 3)).missing() for part in range(3)]
    assert sorted(index for part in parts for index in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    # What is done already must not move series from one part to another.
    build_series(*cache.job(parts[0][0]))
    assert [Precache(cache, shard=(part, 3)).missing() for part in (1, 2)] == parts[1:]
    chosen = Precache(cache, subsets=[1, 5])
    chosen.run()
    assert {path.name[:7] for path in cached_files(tmp_path / "cache")} >= {"1.2.3.1", "1.2.3.5"}
    assert len(cache.missing()) == 7 - len({1, 5} | {int(cache.data[parts[0][0]]["seriesuid"][-1])})


def test_bad_shards_and_subsets(make_dataset, tmp_path):
    cache = open_cache(make_dataset(scans=2), tmp_path / "cache")
    with pytest.raises(LunaError, match=r"subsets 7: no scans with candidates in them; choose from 0, 1"):
        Precache(cache, subsets=[1, 7])
    for shard in ((3, 3), (-1, 2)):
        with pytest.raises(LunaError, match="shard"):
            Precache(cache, shard=shard)


def test_too_many_workers_are_refused_before_the_work(make_dataset, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()._replace(available=4_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    cache = open_cache(make_dataset(scans=4), tmp_path / "cache")
    with pytest.raises(LunaError, match=r"7\.12 MB of memory, 4 MB are available; use at most 2"):
        Precache(cache, num_workers=10_000).run()


def test_files_of_dead_processes_go_and_others_stay(make_dataset, tmp_path):
    cache = open_cache(make_dataset(), tmp_path / "cache")
    Precache(cache).run()
    left = cache.cache_dir / f".{cache.names[0]}.01234567.luna.tmp"
    foreign = cache.cache_dir / ".other.0123.tmp"
    for path in (left, foreign):
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    with atomic_write(cache.cache_dir / "other.pt") as file:
        file.write(b"{}")
        file.flush()
        time.sleep(0.2)  # a file is older than this before it counts as abandoned
        assert Precache(cache).run() == 0  # nothing to cut
        assert not left.exists()
        assert len(list(cache.cache_dir.glob(".*.luna.tmp"))) == 1  # in use
    assert foreign.exists()
