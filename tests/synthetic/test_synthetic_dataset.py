"""The synthetic dataset folder: LUNA16's form, the same bytes for a seed, whole or refused."""

import hashlib
import os
import re

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import spatial

from luna_monai.data import read_candidates
from luna_monai.errors import LunaError
from luna_monai.scans import find_scans
from luna_monai.synthetic import dataset, write_dataset

COORDINATES = ["coordX", "coordY", "coordZ"]
SMALL = {"candidates_per_scan": 25, "nodules_per_scan": 3, "in_plane": 80, "slices": 48, "seed": 7}
HEADER_FIELDS = [
    "ObjectType", "NDims", "BinaryData", "BinaryDataByteOrderMSB", "CompressedData", "TransformMatrix", "Offset",
    "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing", "DimSize", "ElementType", "ElementDataFile",
]  # fmt: skip


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "luna", scans=4, **SMALL)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bytes_for_any_number_of_workers(small_dataset, tmp_path, workers):
    again = write_dataset(tmp_path / "again", scans=4, workers=workers, **SMALL)
    assert digests(again) == digests(small_dataset)


def test_seed_and_scan_decide_the_content(small_dataset, tmp_path):
    other = write_dataset(tmp_path / "other", scans=1, **{**SMALL, "seed": 8})
    contents = [value for folder in (small_dataset, other) for name, value in digests(folder).items() if "raw" in name]
    assert len(set(contents)) == len(contents) == 5


def test_folder_is_luna16(small_dataset):
    names = {str(path.relative_to(small_dataset).parent) for path in small_dataset.rglob("*.raw")}
    assert names == {"subset0", "subset1"}
    assert all(len(list((small_dataset / name).glob("*.mhd"))) == 2 for name in names)
    uids = (small_dataset / "seriesuids.csv").read_text().split()
    assert set(find_scans(small_dataset)) == set(uids)
    for uid in uids:
        assert uid.startswith("2.25.")
        assert len(uid) <= 64
    header = next((small_dataset / "subset0").glob("*.mhd")).read_text().splitlines()
    assert [line.split(" = ")[0] for line in header] == HEADER_FIELDS
    assert pd.read_csv(small_dataset / "annotations.csv").columns.tolist() == ["seriesuid", *COORDINATES, "diameter_mm"]
    excluded = pd.read_csv(small_dataset / "annotations_excluded.csv")
    assert excluded.columns.tolist() == ["seriesuid", *COORDINATES, "diameter_mm"]
    assert ((excluded["diameter_mm"] == -1) | (excluded["diameter_mm"] >= 3)).all()


def test_candidates_are_read_and_lie_in_their_volumes(small_dataset):
    candidates = read_candidates(small_dataset)
    assert len(candidates) == 4 * SMALL["candidates_per_scan"]
    # The reader joins a hit with its annotation, so all hits lie close to one.
    assert (candidates.loc[candidates["class"] == 1, "diameter_mm"] > 0).all()
    assert (candidates.loc[candidates["class"] == 0, "diameter_mm"] == 0).all()
    annotations = pd.read_csv(small_dataset / "annotations.csv")
    found = candidates.loc[candidates["class"] == 1, "seriesuid"]
    assert set(found) == set(annotations["seriesuid"])
    assert len(found) >= len(annotations) > 2
    for seriesuid, rows in candidates.groupby("seriesuid"):
        image = sitk.ReadImage(next(small_dataset.rglob(f"{seriesuid}.mhd")))
        assert image.GetSize() == (80, 80, 48)
        assert image.GetPixelID() == sitk.sitkInt16
        for point in rows[COORDINATES].to_numpy():
            index = np.array(image.TransformPhysicalPointToContinuousIndex(point.tolist()))
            assert ((index >= 0) & (index <= np.array(image.GetSize()) - 1)).all()
        nodules = annotations.loc[annotations["seriesuid"] == seriesuid]
        negatives = rows.loc[rows["class"] == 0, COORDINATES].to_numpy()
        for nodule, diameter in zip(nodules[COORDINATES].to_numpy(), nodules["diameter_mm"], strict=True):
            assert np.linalg.norm(negatives - nodule, axis=1).min() > diameter / 2 + 3


def test_nodules_are_denser_than_the_lung_around_them(small_dataset):
    annotations = pd.read_csv(small_dataset / "annotations.csv")
    contrasts = []
    for row in annotations.itertuples():
        image = sitk.ReadImage(next(small_dataset.rglob(f"{row.seriesuid}.mhd")))
        voxels = sitk.GetArrayFromImage(image)
        center = image.TransformPhysicalPointToContinuousIndex((row.coordX, row.coordY, row.coordZ))
        z, y, x = np.indices(voxels.shape)
        spacing = image.GetSpacing()
        distance = np.sqrt(sum(((a - c) * s) ** 2 for a, c, s in zip((x, y, z), center, spacing, strict=True)))
        inside = voxels[distance < 0.35 * row.diameter_mm]
        if inside.size:
            contrasts.append(float(np.median(inside)) > -820)
    assert np.mean(contrasts) > 0.9


def test_the_last_scans_are_whole_thoraxes(small_dataset, tmp_path):
    folder = write_dataset(tmp_path / "luna", scans=2, whole_thoraxes=1, **SMALL)
    part, whole = (folder / "seriesuids.csv").read_text().split()
    first = f"subset0/{part}.raw"
    assert digests(folder)[first] == digests(small_dataset)[first]
    header = (folder / "subset1" / f"{whole}.mhd").read_text()
    slices = int(re.search(r"DimSize = 512 512 (\d+)", header)[1])
    assert slices > 100
    candidates = pd.read_csv(folder / "candidates.csv")
    assert candidates["seriesuid"].value_counts().to_dict() == {part: 25, whole: 75}
    # As in LUNA16, no two negatives of a whole thorax are at the same place.
    negatives = candidates.loc[(candidates["seriesuid"] == whole) & (candidates["class"] == 0), COORDINATES]
    assert spatial.distance.pdist(negatives).min() > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scans": 0}, "scans must be at least 1, found 0"),
        ({"candidates_per_scan": 0}, "candidates_per_scan must be between 1 and 100000, found 0"),
        ({"candidates_per_scan": 10**9}, "candidates_per_scan must be between 1 and 100000, found 1000000000"),
        ({"nodules_per_scan": -1.0}, "nodules_per_scan must be between 0 and 100, found -1"),
        ({"nodules_per_scan": float("nan")}, "nodules_per_scan must be between"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"in_plane": 40}, "in_plane must be between 64 and 512 voxels, found 40"),
        ({"slices": 20}, "slices must be between 40 and 1000 voxels, found 20"),
        ({"scans": 10**9}, "GB are free"),
        ({"whole_thoraxes": 2}, "whole_thoraxes must be at most the number of scans, 1, found 2"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path, change, message):
    with pytest.raises(LunaError, match=message):
        write_dataset(tmp_path / "luna", **{"scans": 1, **change})
    assert not list(tmp_path.rglob("*.raw"))


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(LunaError, match=r"not empty.*mine\.txt"):
        write_dataset(tmp_path, scans=1, **SMALL)
    with pytest.raises(LunaError, match=r"mine\.txt: cannot be used as a folder"):
        write_dataset(tmp_path / "mine.txt", scans=1, **SMALL)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_failure_leaves_no_half_written_scan(tmp_path, monkeypatch, failure):
    replace = os.fsync
    written = []

    def fail_later(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise failure
        replace(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    expected = LunaError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_dataset(tmp_path / "luna", scans=2, **SMALL)
    files = [path for path in (tmp_path / "luna").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in files) == [".mhd", ".raw"]
    assert next(path for path in files if path.suffix == ".raw").stat().st_size == 80 * 80 * 48 * 2


def test_flipped_header(small_dataset):
    candidates = np.zeros((0, 4))
    scan = dataset.SyntheticScan(
        voxels=np.zeros((2, 3, 4), dtype=np.int16),
        spacing=(0.5, 0.5, 1.7999999523162842),
        origin=(180.0, 185.5, -334.19),
        direction=(-1.0, -1.0, 1.0),
        annotations=candidates,
        excluded=candidates,
        candidates=candidates,
    )
    lines = dataset.format_header(scan, "a.raw").splitlines()
    assert "TransformMatrix = -1 0 0 0 -1 0 0 0 1" in lines
    assert "AnatomicalOrientation = LPI" in lines
    assert "ElementSpacing = 0.5 0.5 1.7999999523162842" in lines
    assert "DimSize = 4 3 2" in lines
