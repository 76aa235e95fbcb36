"""The cache gives the book's voxels, cold and warm, and never a stale, damaged or half-written series."""

import datetime
import functools
import hashlib
import importlib
import logging
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from monai.engines import SupervisedTrainer
from monai.transforms import Lambdad, Transform

import luna_monai.data.cache
from luna_monai.data import CandidateDataset, CandidateLoader, Precache, SeriesCache, read_candidates, series_items
from luna_monai.data.cache_files import cached_files, transform_hashing
from luna_monai.errors import LunaError
from luna_monai.transforms import ClipIntensityRanged, CropCandidates, CropCandidatesd, LoadScand


def transforms(a_max=1000, spatial_size=(32, 48, 48)):
    return [
        LoadScand("image"),
        CropCandidatesd("image", spatial_size),
        ClipIntensityRanged("image", -1000, a_max),
    ]


def open_dataset(dataset_dir, cache_dir, **kwargs):
    candidates = read_candidates(dataset_dir)
    return CandidateDataset(
        candidates, SeriesCache(series_items(candidates, dataset_dir), transforms(**kwargs), cache_dir)
    )


@pytest.fixture(scope="module")
def mini_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("state", ["cold", "warm", "direct"])
def test_golden_voxels(luna16_mini, golden, mini_cache, tmp_path, state, num_workers):
    cache_dir = {"cold": tmp_path, "warm": mini_cache, "direct": None}[state]
    dataset = open_dataset(luna16_mini, cache_dir)
    if state == "warm":
        Precache(dataset.cache, num_workers=num_workers).run()
    seen = []
    for batch in CandidateLoader(dataset, batch_size=100, num_workers=num_workers):
        assert batch["image"].dtype == torch.int16
        for row, image, center in zip(batch["row"], batch["image"], batch["center_irc"], strict=True):
            seen.append(int(row))
            crop = image[0].numpy().astype("<f4")
            assert hashlib.sha256(crop.tobytes()).hexdigest() == golden["crop_sha256"][row]
            np.testing.assert_array_equal(center, golden["center_irc"][row])
    assert seen == list(range(len(golden["is_nodule"])))


def test_threads_that_come_for_the_same_series_make_it_once(make_dataset, tmp_path, monkeypatch):
    dataset = open_dataset(make_dataset(scans=2, candidates=40), tmp_path / "cache")
    made = []
    build = luna_monai.data.cache.build_series

    def slow_build(path, item, steps):
        made.append(item["seriesuid"])
        time.sleep(0.1)
        return build(path, item, steps)

    monkeypatch.setattr(luna_monai.data.cache, "build_series", slow_build)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    ahead = list(CandidateLoader(dataset, num_workers=8, batch_size=6, sampler=order))
    assert sorted(made) == ["1.2.3.0", "1.2.3.1"]
    assert [row for batch in ahead for row in batch["row"].tolist()] == order
    for ours, plain in zip(ahead, CandidateLoader(dataset, batch_size=6, sampler=order), strict=True):
        for key, value in plain.items():
            assert torch.equal(ours[key], value) if isinstance(value, torch.Tensor) else ours[key] == value, key


def test_threads_do_not_change_the_order(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")
    orders = []
    for workers in (0, 2):
        generator = torch.Generator().manual_seed(1)
        loader = CandidateLoader(dataset, workers, batch_size=4, shuffle=True, generator=generator)
        orders.append([row for _ in range(2) for batch in loader for row in batch["row"].tolist()])
    assert orders[0] == orders[1] != sorted(orders[0])


def test_shuffling_without_a_sampler_follows_seed_and_epoch(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")

    def orders(seed, epochs, first=1):
        seen = []
        trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=epochs,
            train_data_loader=CandidateLoader(dataset, batch_size=12, shuffle=True, seed=seed),
            network=None,
            optimizer=None,
            loss_function=None,
            iteration_update=lambda engine, batch: seen.extend(batch["row"].tolist()),
        )
        trainer.state.epoch = first - 1  # as a resumed run begins
        trainer.run()
        return seen

    two = orders(1, 2)
    assert orders(1, 2, first=2) == two[36:] != two[:36]
    assert sorted(two[:36]) == list(range(36)) != two[:36]
    assert orders(2, 1) != two[:36]


def test_reading_ahead_moves_no_random_numbers_and_ends_with_the_loop(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    threads = threading.active_count()
    for _ in CandidateLoader(dataset, num_workers=3, batch_size=2, shuffle=True):
        assert threading.active_count() > threads
        break
    assert torch.equal(torch.get_rng_state(), before)
    assert threading.active_count() == threads


def test_items_and_batches_agree(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")
    batch = next(iter(CandidateLoader(dataset, batch_size=8, shuffle=True)))
    for place, row in enumerate(batch["row"].tolist()):
        item = dataset[row]
        assert (item["row"], item["label"]) == (row, int(batch["label"][place]))
        assert item["seriesuid"] == batch["seriesuid"][place]
        for key in ("image", "center_irc", "center_xyz"):
            torch.testing.assert_close(item[key], batch[key][place])
    plain = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8)))
    ours = next(iter(CandidateLoader(dataset, batch_size=8)))
    assert set(plain) == set(ours)
    for key in ("image", "label", "row", "center_irc", "center_xyz"):
        torch.testing.assert_close(plain[key], ours[key])


def test_the_number_of_open_files_is_limited(make_dataset, tmp_path, monkeypatch):
    folder = make_dataset(scans=5)
    first, second = open_dataset(folder, tmp_path / "cache"), open_dataset(folder, tmp_path / "cache")
    monkeypatch.setattr("luna_monai.data.cache._MOST_OPEN", 2)
    for index in [*range(len(first)), 0, len(first) - 1]:
        torch.testing.assert_close(second[index]["image"], first[index]["image"])
    assert len(second.cache._open) == 2


def test_splits_share_the_cache(make_dataset, tmp_path):
    folder = make_dataset()
    candidates = read_candidates(folder)
    cache = SeriesCache(series_items(candidates, folder), transforms(), tmp_path / "cache")
    whole = CandidateDataset(candidates, cache)
    part = CandidateDataset(candidates[candidates.index % 5 == 3], cache)
    for item in (part[index] for index in range(len(part))):
        torch.testing.assert_close(item["image"], whole[item["row"]]["image"])
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_cold_and_warm_reads_are_of_one_type(make_dataset, tmp_path):
    folder = make_dataset()
    cold = open_dataset(folder, tmp_path / "cache")[3]
    warm = open_dataset(folder, tmp_path / "cache")[3]
    assert {key: type(value) for key, value in cold.items()} == {key: type(value) for key, value in warm.items()}
    assert type(warm["image"]) is torch.Tensor
    torch.testing.assert_close(cold["image"], warm["image"])


@pytest.mark.parametrize("state", ["direct", "cold", "precached"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32"])
def test_every_integer_type_is_cached_as_int16(make_dataset, tmp_path, dtype, state):
    folder = make_dataset(scans=1)
    (path,) = folder.glob("subset*/*.mhd")
    image = sitk.ReadImage(str(path))
    limits = np.iinfo(dtype)
    random = np.random.default_rng(0)
    voxels = random.integers(max(limits.min, -2000), min(limits.max, 70_000), image.GetSize()[::-1]).astype(dtype)
    changed = sitk.GetImageFromArray(voxels)
    changed.CopyInformation(image)
    sitk.WriteImage(changed, str(path))
    dataset = open_dataset(folder, None if state == "direct" else tmp_path / "cache")
    if state == "precached":
        Precache(dataset.cache).run()
    (batch,) = CandidateLoader(dataset, batch_size=100)
    assert batch["image"].dtype == torch.int16
    scan, centers = torch.from_numpy(voxels.astype(np.int32))[None], batch["center_irc"].numpy()
    expected = CropCandidates((32, 48, 48))(scan, centers)
    np.testing.assert_array_equal(batch["image"].numpy(), np.clip(expected.numpy(), -1000, 1000))


def test_moved_dataset_keeps_its_cache(make_dataset, tmp_path):
    folder = make_dataset()
    Precache(open_dataset(folder, tmp_path / "cache").cache).run()
    folder.rename(tmp_path / "moved")
    assert open_dataset(tmp_path / "moved", tmp_path / "cache").cache.missing() == []


def test_changed_transform_parameter_is_a_new_key(make_dataset, tmp_path):
    folder = make_dataset()
    Precache(open_dataset(folder, tmp_path / "cache").cache).run()
    changed = open_dataset(folder, tmp_path / "cache", a_max=400)
    assert len(changed.cache.missing()) == 3
    assert changed[0]["image"].max() <= 400
    smaller = open_dataset(folder, tmp_path / "cache", spatial_size=(16, 24, 24))
    assert smaller[0]["image"].shape == (1, 16, 24, 24)


def test_changed_ct_is_cut_again(make_dataset, tmp_path):
    folder = make_dataset()
    before = open_dataset(folder, tmp_path / "cache")
    rows = [row for row in range(len(before)) if before[row]["seriesuid"] == "1.2.3.1"]
    raw = folder / "subset1" / "1.2.3.1.raw"
    voxels = np.fromfile(raw, dtype=np.int16)
    (voxels // 2).tofile(raw)
    os.utime(raw, ns=(1, 1))
    after = open_dataset(folder, tmp_path / "cache")
    assert len(after.cache.missing()) == 1
    assert not torch.equal(before[rows[0]]["image"], after[rows[0]]["image"])


def test_changed_candidates_are_cut_again(make_dataset, tmp_path):
    folder = make_dataset()
    Precache(open_dataset(folder, tmp_path / "cache").cache).run()
    table = pd.read_csv(folder / "candidates.csv", dtype=str)  # pandas 2 reads numbers to the last digit but one
    table.loc[0, "coordZ"] = str(float(table.loc[0, "coordZ"]) + 2.5)
    table.to_csv(folder / "candidates.csv", index=False)
    assert len(open_dataset(folder, tmp_path / "cache").cache.missing()) == 1


def test_lambda_in_a_cached_transform_is_refused(make_dataset, tmp_path):
    folder = make_dataset()
    items = series_items(read_candidates(folder), folder)

    class Local(Transform):
        def __call__(self, data):
            return data

    for transform in (Lambdad("image", lambda image: image), Local()):
        with pytest.raises(LunaError, match=r"transforms cannot be cached: .*; use classes and functions of modules"):
            SeriesCache(items, [*transforms(), transform], tmp_path / "cache")


def test_changed_source_of_a_transform_is_a_new_key(make_dataset, tmp_path, monkeypatch):
    folder = make_dataset()
    items = series_items(read_candidates(folder), folder)
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        "from monai.transforms import Transform\n\ndef change(image):\n    return image + 1\n\n"
        "class Change(Transform):\n    def __call__(self, data):\n"
        "        return data | {'image': change(data['image'])}\n"
    )
    images = []
    for source in (text, text.replace("+ 1", "+ 20")):
        (tmp_path / "of_a_user.py").write_text(source)
        module = importlib.reload(importlib.import_module("of_a_user"))
        cache = SeriesCache(items, [*transforms(), module.Change()], tmp_path / "cache")
        assert len(cache.missing()) == 3
        Precache(cache).run()
        images.append(cache[0]["image"].clone())
    assert torch.equal(images[1], images[0] + 19)


def test_parameters_of_partials_and_slots_are_seen():
    def hash_with(value):
        return transform_hashing([Lambdad("image", functools.partial(np.add, value)), datetime.date(2020, 1, value)])

    assert hash_with(1) == hash_with(1) != hash_with(2)


def test_one_voxel_changed_under_the_same_size_and_time_is_seen(make_dataset, tmp_path, caplog):
    folder = make_dataset()
    before = open_dataset(folder, tmp_path / "cache")
    Precache(before.cache).run()
    index = before[0]["seriesuid"][-1]
    raw = folder / f"subset{index}" / f"1.2.3.{index}.raw"
    status = raw.stat()
    voxels = np.fromfile(raw, dtype=np.int16).reshape(40, 56, 60)
    voxels[tuple(before[0]["center_irc"])] = 77
    with raw.open("r+b") as file:
        file.write(voxels.tobytes())
    os.utime(raw, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = open_dataset(folder, tmp_path / "cache")
    assert [after.cache.data[number]["seriesuid"][-1] for number in after.cache.missing()] == [index]
    caplog.set_level(logging.INFO)
    Precache(after.cache).run()
    assert (after[0]["image"] != before[0]["image"]).sum() == 1
    assert open_dataset(folder, tmp_path / "cache").cache.missing() == []


def test_a_disk_whose_clock_is_late_is_no_error(make_dataset, tmp_path):
    folder = make_dataset()
    dataset = open_dataset(folder, tmp_path / "cache")
    for item in dataset.cache.data:
        item["changed_ns"] += 3600 * 10**9
    batch = dataset.read(range(36))["image"]
    assert torch.equal(batch, dataset.read(range(36))["image"])


def test_file_truncated_within_an_epoch_is_cut_again(make_dataset, tmp_path, caplog):
    dataset = open_dataset(make_dataset(), tmp_path / "cache")
    whole = torch.cat([batch["image"] for batch in CandidateLoader(dataset, batch_size=4)])
    batches = iter(CandidateLoader(dataset, batch_size=4))
    read = [next(batches)["image"]]
    for index in range(3):
        truncate(dataset.cache.job(index)[0])
    read += [batch["image"] for batch in batches]
    assert torch.equal(torch.cat(read), whole)
    assert f"{dataset.cache.job(1)[0]}: damaged (" in caplog.text


def test_series_whose_uids_differ_only_in_what_a_name_cannot_hold(make_dataset, tmp_path):
    folder = make_dataset(scans=2)
    items = series_items(read_candidates(folder), folder)
    same = [{**items[0], "seriesuid": uid} for uid in ("a/b", "a_b", "a:b", "a", "a" * 300)]
    cache = SeriesCache(same, transforms(), tmp_path / "cache")
    Precache(cache).run()
    names = [path.name for path in cached_files(tmp_path / "cache")]
    assert len(names) == len({name.casefold().split(".")[0] for name in names}) == 5
    assert max(map(len, names)) < 110
    assert cache.missing() == []


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def other_content(path):
    torch.save({"image": torch.zeros(2, 1, 32, 48, 48, dtype=torch.int16)}, path)


def other_shape(path):
    torch.save({"image": torch.zeros(2, 3), "center_irc": torch.zeros(2, 3)}, path)


def no_torch_file(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("damage", [empty, truncate, other_content, other_shape, no_torch_file])
def test_damaged_file_is_named_and_made_again(make_dataset, tmp_path, caplog, damage):
    folder = make_dataset()
    whole = open_dataset(folder, tmp_path / "cache")
    expected = whole[5]["image"].clone()
    path = whole.cache.job(int(whole._series[5]))[0]
    damage(path)
    again = open_dataset(folder, tmp_path / "cache")
    torch.testing.assert_close(again[5]["image"], expected)
    assert f"{path}: damaged" in caplog.text
    caplog.clear()
    torch.testing.assert_close(open_dataset(folder, tmp_path / "cache")[5]["image"], expected)
    assert not caplog.records


def test_file_is_147456_bytes_a_candidate(make_dataset, tmp_path):
    dataset = open_dataset(make_dataset(scans=1, candidates=300), tmp_path / "cache")
    Precache(dataset.cache).run()
    size = dataset.cache.job(0)[0].stat().st_size
    assert 147_456 * 300 <= size <= 147_456 * 300 * 1.01
    assert size <= dataset.cache.bytes_needed([0])


def test_missing_ct_names_the_file(make_dataset, tmp_path):
    folder = make_dataset(scans=2)
    dataset = open_dataset(folder, tmp_path / "cache")
    row = next(row for row, uid in enumerate(read_candidates(folder)["seriesuid"]) if uid == "1.2.3.1")
    (folder / "subset1" / "1.2.3.1.raw").unlink()
    with pytest.raises(LunaError, match=r"1\.2\.3\.1\.raw"):
        dataset[row]
    assert not list((tmp_path / "cache").iterdir())


def lose_voxels(folder):
    (folder / "subset1" / "1.2.3.1.raw").unlink()
    return r"1\.2\.3\.1\.raw: no such file, but 1\.2\.3\.1\.mhd refers to it"


def point_outside(folder):
    (folder / "subset1" / "1.2.3.1.raw").rename(folder.parent / "voxels.raw")
    header = folder / "subset1" / "1.2.3.1.mhd"
    header.write_text(header.read_text().replace("1.2.3.1.raw", str(folder.parent / "voxels.raw")))
    return r"1\.2\.3\.1\.mhd: the voxel file must be in the folder of the header, found ElementDataFile = .*voxels\.raw"


@pytest.mark.parametrize("fault", [lose_voxels, point_outside])
def test_half_unpacked_dataset_is_one_line_before_the_work(make_dataset, fault):
    folder = make_dataset(scans=2)
    message = fault(folder)
    with pytest.raises(LunaError, match=message):
        series_items(read_candidates(folder), folder)


def test_error_in_a_worker_is_one_line(make_dataset, tmp_path):
    from luna_monai.errors import find_luna_error

    folder = make_dataset(scans=2)
    dataset = open_dataset(folder, tmp_path / "cache")
    for scan in (0, 1):
        (folder / f"subset{scan}" / f"1.2.3.{scan}.raw").unlink()
    with pytest.raises(LunaError) as caught:
        list(CandidateLoader(dataset, num_workers=1, batch_size=4))
    found = find_luna_error(caught.value)
    assert found is not None
    assert "\n" not in str(found)
    assert ".raw" in str(found)


def test_cache_folder_that_is_a_file(make_dataset, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(LunaError, match="cannot be used as cache folder"):
        open_dataset(make_dataset(), tmp_path / "cache")
