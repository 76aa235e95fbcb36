"""The cache survives kill -9, full and read-only disks, damaged files, company and odd paths."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import torch
from monai.transforms import Transform

from luna_monai.data import (
    CandidateDataset,
    CandidateLoader,
    Precache,
    SeriesCache,
    read_candidates,
    series_items,
)
from luna_monai.data.cache_files import build_series, cached_files, find_damage
from luna_monai.errors import LunaError
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand


def verify(cache_dir):
    return [path for path in cached_files(cache_dir) if find_damage(path)]


class KillWorker(Transform):
    """Do what the kernel does when memory runs out."""

    def __call__(self, data):
        os.kill(os.getpid(), signal.SIGKILL)


def transforms(a_max=1000, spatial_size=(32, 48, 48), more=()):
    crop = CropCandidatesd("image", spatial_size)
    return [LoadScand("image"), crop, ClipIntensityRanged("image", -1000, a_max), *more]


def fill_and_report(dataset_dir, cache_dir, num_workers, options):
    torch.set_num_threads(1)  # OpenMP's threads did not survive the fork, and waiting for them would never end
    try:
        Precache(open_dataset(dataset_dir, cache_dir, **options).cache, num_workers).run()
    except LunaError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(1)


def open_dataset(dataset_dir, cache_dir, **kwargs):
    candidates = read_candidates(dataset_dir)
    return CandidateDataset(
        candidates, SeriesCache(series_items(candidates, dataset_dir), transforms(**kwargs), cache_dir)
    )


def assert_same_voxels(dataset_dir, cache_dir):
    cached, direct = open_dataset(dataset_dir, cache_dir), open_dataset(dataset_dir, None)
    rows = range(len(cached))
    torch.testing.assert_close(cached.read(rows)["image"], direct.read(rows)["image"])


@pytest.fixture
def start():
    """Return a function that starts a pre-cache in a process group of its own."""
    processes = []

    def fill(dataset_dir, cache_dir, num_workers):
        os.setsid()
        # OpenMP's threads did not survive the fork, and waiting for them would never end.
        torch.set_num_threads(1)
        # Ctrl-C is ignored in tests that run in the background of a shell.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        Precache(open_dataset(dataset_dir, cache_dir).cache, num_workers).run()

    def begin(*args):
        process = multiprocessing.get_context("fork").Process(target=fill, args=args)
        process.start()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a file system of a few bytes, or skip."""
    mounted = []

    def mount(name, size):
        folder = tmp_path / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a small file system cannot be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_kill_9_leaves_whole_files_and_the_next_run_goes_on(make_dataset, tmp_path, start, num_workers):
    folder = make_dataset(scans=8, candidates=60)
    cache_dir = tmp_path / "cache"
    moments = random.Random(num_workers)
    seen = 0
    for _ in range(12):
        process = start(folder, cache_dir, num_workers)
        time.sleep(moments.uniform(0.02, 0.35))
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # not even its group is there yet
            process.kill()
        process.join()
        if not cache_dir.exists():
            continue
        assert verify(cache_dir) == []
        count = len(cached_files(cache_dir))
        assert count >= seen
        seen = count
    cache = open_dataset(folder, cache_dir).cache
    assert Precache(cache, num_workers).run() == 8 - seen
    assert_same_voxels(folder, cache_dir)


def test_ctrl_c_leaves_whole_files_and_nothing_else(make_dataset, tmp_path, start):
    folder = make_dataset(scans=30, candidates=60)
    cache_dir = tmp_path / "cache"
    process = start(folder, cache_dir, 2)
    while not cache_dir.exists() or not cached_files(cache_dir):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode != 0
    assert 0 < len(cached_files(cache_dir)) < 30
    assert verify(cache_dir) == []
    assert not list(cache_dir.glob(".*.tmp"))


def test_disk_that_is_too_small_is_refused_before_the_work(make_dataset, small_disk):
    disk = small_disk("disk", "2m")
    with pytest.raises(LunaError, match=r"needs 5\.\d+ MB, the disk has 2\.\d+ MB free"):
        Precache(open_dataset(make_dataset(), disk).cache).run()
    assert not list(disk.iterdir())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_disk_that_fills_up_during_the_work(make_dataset, small_disk, monkeypatch, num_workers):
    disk = small_disk("disk", "6m")
    folder = make_dataset(scans=3)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(2_500_000))
    usage = shutil.disk_usage(disk)._replace(free=10**12)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)  # as it was before others came and filled it
        with pytest.raises(LunaError) as caught:
            Precache(open_dataset(folder, disk).cache, num_workers).run()
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert verify(disk) == []
    assert not list(disk.glob(".*.tmp"))
    ballast.unlink()
    Precache(open_dataset(folder, disk).cache, num_workers).run()
    assert_same_voxels(folder, disk)


def damage_voxels(dataset_dir):
    for path in dataset_dir.glob("subset*/*.zraw"):
        content = path.read_bytes()
        path.write_bytes(content[:1000] + bytes(len(content) - 1000))
    return ".zraw: ", {}


def crop_larger_than_scan(dataset_dir):
    return "smaller than the crop of 64 x 48 x 48", {"spatial_size": (64, 48, 48)}


def kill_worker(dataset_dir):
    return "a worker was killed", {"more": [KillWorker()]}


@pytest.mark.parametrize("fault", [damage_voxels, crop_larger_than_scan, kill_worker])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_error_in_a_worker_ends_the_command_at_once(make_dataset, tmp_path, capfd, fault, num_workers):
    folder = make_dataset(scans=6, compressed=True)
    message, options = fault(folder)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=fill_and_report, args=(folder, tmp_path / "cache", num_workers, options))
    process.start()
    process.join(timeout=30)
    try:
        assert process.exitcode == 1, "it hangs"
    finally:
        process.kill()
        process.join()
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "cache").glob("*.pt"))


def test_read_only_cache(make_dataset, small_disk):
    disk = small_disk("disk", "20m")
    folder = make_dataset(scans=3)
    Precache(open_dataset(folder, disk).cache).run()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert Precache(open_dataset(folder, disk).cache, num_workers=2).run() == 0
    assert_same_voxels(folder, disk)
    with pytest.raises(LunaError, match="Read-only file system"):
        Precache(open_dataset(folder, disk, a_max=400).cache).run()
    with pytest.raises(LunaError, match="Read-only file system"):
        open_dataset(folder, disk, a_max=400)[0]


def test_two_at_once(make_dataset, tmp_path, start):
    folder = make_dataset(scans=10, candidates=30)
    cache_dir = tmp_path / "cache"
    processes = [start(folder, cache_dir, number) for number in (0, 2)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert verify(cache_dir) == []
    assert len(cached_files(cache_dir)) == 10
    assert_same_voxels(folder, cache_dir)


def test_flipped_bytes_are_found_or_do_no_harm(make_dataset, tmp_path):
    folder = make_dataset(scans=1, candidates=3)
    cache = open_dataset(folder, tmp_path / "cache").cache
    path = cache.job(0)[0]
    build_series(*cache.job(0))
    whole = path.read_bytes()
    expected = cache[0]
    assert find_damage(path) is None
    offsets = random.Random(0).sample(range(len(whole)), 150)
    headers = [at for at in range(len(whole)) if at < 400 or at > len(whole) - 800]
    found = 0
    for offset in [*offsets, *headers[::12]]:
        changed = bytearray(whole)
        changed[offset] ^= 0x10
        path.write_bytes(changed)
        if find_damage(path) is not None:
            found += 1
            continue
        # Padding and dates inside the archive: nobody reads them.
        read = open_dataset(folder, tmp_path / "cache").cache[0]
        torch.testing.assert_close(read["image"], expected["image"])
        torch.testing.assert_close(read["center_irc"], expected["center_irc"])
    assert found > 140


def test_file_under_the_name_of_another_is_made_again(make_dataset, tmp_path, caplog):
    folder = make_dataset(scans=2)
    cache = open_dataset(folder, tmp_path / "cache").cache
    Precache(cache).run()
    shutil.copyfile(cache.job(0)[0], cache.job(1)[0])
    assert_same_voxels(folder, tmp_path / "cache")
    assert "its content does not match its name" in caplog.text


def test_odd_paths_and_a_tiny_folder_for_temporary_files(make_dataset, tmp_path, small_disk, monkeypatch):
    tiny = small_disk("tmp", "64k")
    monkeypatch.setenv("TMPDIR", str(tiny))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = make_dataset(name="Lungen CTs ä 肺")
    cache_dir = tmp_path / "mein Zwischenspeicher ß" / "Кэш"
    Precache(open_dataset(folder, cache_dir).cache, num_workers=2).run()
    assert_same_voxels(folder, cache_dir)
    assert len(cached_files(cache_dir)) == 3


def test_workers_that_inherit_nothing_read_the_same(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")
    Precache(dataset.cache).run()
    here = next(iter(CandidateLoader(dataset, batch_size=20)))
    plain = torch.utils.data.DataLoader(dataset, batch_size=20, num_workers=1, multiprocessing_context="forkserver")
    spawned = next(iter(plain))
    torch.testing.assert_close(spawned["image"], here["image"])
    assert spawned["seriesuid"] == here["seriesuid"]


def test_888_series_cost_no_file_handles(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda number: None)  # 10 ms for each file
    folder = make_dataset(scans=888, candidates=2, shape=(4, 6, 6))
    dataset = open_dataset(folder, tmp_path / "cache", spatial_size=(2, 3, 3))
    Precache(dataset.cache).run()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 100, hard))
    try:
        for num_workers in (0, 2):
            loader = CandidateLoader(dataset, batch_size=16, num_workers=num_workers)
            for _ in range(2):
                assert sum(len(batch["row"]) for batch in loader) == 2 * 888
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(dataset.cache._open) == 888


def test_scans_that_are_not_cached_cost_few_file_handles(make_dataset):
    dataset = open_dataset(make_dataset(scans=120, candidates=2, shape=(4, 6, 6)), None, spatial_size=(2, 3, 3))
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert len([dataset[number] for number in range(len(dataset))]) == 240
    assert len(os.listdir("/proc/self/fd")) <= opened + 64  # noqa: PTH208


def test_candidates_of_another_table_are_refused(make_dataset):
    dataset = open_dataset(make_dataset(), None)
    table = read_candidates(make_dataset("same"))
    part = table[table["seriesuid"] == "1.2.3.1"]
    assert CandidateDataset(part, dataset.cache)[1]["seriesuid"] == "1.2.3.1"
    for other in (part.reset_index(drop=True), part.set_axis(part.index + 1000)):
        with pytest.raises(LunaError, match="the candidates are not part of the table of the cache"):
            CandidateDataset(other, dataset.cache)


def anonymous_memory(process="self"):
    with open(f"/proc/{process}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def test_memory_does_not_grow_over_epochs(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(scans=4, candidates=60), tmp_path / "cache")
    loader = CandidateLoader(dataset, batch_size=16, shuffle=True)
    for number in range(30):
        for batch in loader:
            del batch
        if number == 4:
            before = anonymous_memory()
    assert anonymous_memory() - before < 10e6  # 26 epochs of 35 MB
