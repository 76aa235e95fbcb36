"""The candidate table and its splits are the book's."""

import csv
import logging
import time
import zipfile

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_monai.data import read_candidates, split_by_stride, split_by_subset
from luna_monai.data.candidates import outside_of
from luna_monai.errors import LunaError
from luna_monai.scans import find_scans, read_header
from luna_monai.scans.metaimage import read_fields

COORDINATES = ["coordX", "coordY", "coordZ"]


def test_golden_rows(luna16_mini, golden):
    candidates = read_candidates(luna16_mini)
    assert list(candidates.columns) == ["seriesuid", *COORDINATES, "class", "diameter_mm"]
    np.testing.assert_array_equal(candidates["seriesuid"], golden["seriesuid"])
    np.testing.assert_array_equal(candidates[COORDINATES], golden["center_xyz"])
    np.testing.assert_array_equal(candidates["class"], golden["is_nodule"])
    np.testing.assert_array_equal(candidates["diameter_mm"], golden["diameter_mm"])
    train, validation = split_by_stride(candidates, 10)
    np.testing.assert_array_equal(validation.index, np.flatnonzero(golden["is_validation"]))
    np.testing.assert_array_equal(train.index, np.flatnonzero(~golden["is_validation"]))


def plain_reference(dataset_dir):
    """Do what chapter 10 describes, one row at a time."""
    annotations: dict[str, list] = {}
    with (dataset_dir / "annotations.csv").open() as file:
        for row in list(csv.reader(file))[1:]:
            annotations.setdefault(row[0], []).append(([float(value) for value in row[1:4]], float(row[4])))
    rows = []
    with (dataset_dir / "candidates.csv").open() as file:
        for row in list(csv.reader(file))[1:]:
            center = tuple(float(value) for value in row[1:4])
            diameter = 0.0
            for nodule, nodule_diameter in annotations.get(row[0], []):
                if all(abs(a - b) <= nodule_diameter / 4 for a, b in zip(center, nodule, strict=True)):
                    diameter = nodule_diameter
                    break
            rows.append((bool(int(row[4])), diameter, row[0], center))
    return sorted(rows, reverse=True)


def test_order_and_diameters_with_ties_and_overlapping_annotations(make_dataset):
    folder = make_dataset(scans=3, candidates=20)
    table = pd.read_csv(folder / "candidates.csv")
    # Double rows, rows that differ in one coordinate only, and a candidate near two annotations of other sizes.
    shifted = table.iloc[:5].assign(coordZ=table["coordZ"].iloc[:5] + 0.25)
    pd.concat([table, table.iloc[3:9], shifted]).to_csv(folder / "candidates.csv", index=False)
    nodules = pd.read_csv(folder / "annotations.csv")
    pd.concat([nodules, nodules.assign(diameter_mm=30.0)]).to_csv(folder / "annotations.csv", index=False)
    actual = [
        (bool(row["class"]), row.diameter_mm, row.seriesuid, (row.coordX, row.coordY, row.coordZ))
        for _, row in read_candidates(folder, outside_volume="drop").iterrows()
    ]
    assert actual == plain_reference(folder)


def write_full_size(folder, tables, headers):
    """Write tables of LUNA16's own size: 888 headers, 1,186 annotations, 551,065 candidates."""
    subsets = pd.read_csv(tables / "subsets.csv").set_index("seriesuid")["subset"]
    with zipfile.ZipFile(headers) as archive:
        for name in archive.namelist():
            if name.endswith(".mhd"):
                uid = name.rsplit("/", 1)[-1][:-4]
                path = folder / f"subset{subsets[uid]}" / f"{uid}.mhd"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    annotations = pd.read_csv(tables / "annotations.csv")
    annotations.to_csv(folder / "annotations.csv", index=False)
    random = np.random.default_rng(0)
    geometry_of = {}
    for uid, path in find_scans(folder).items():
        fields = read_fields(path)
        geometry_of[uid] = fields["geometry"]
        with fields["files"][-1].open("wb") as file:
            file.truncate(2 * int(np.prod(fields["geometry"].size)))  # takes no place on disk
    parts = [annotations.assign(**{"class": 1})[["seriesuid", *COORDINATES, "class"]]]
    count = 551_065 - len(annotations)
    uids = np.asarray(sorted(geometry_of))
    for uid, number in zip(uids, np.diff(np.linspace(0, count, len(uids) + 1).astype(int)), strict=True):
        geometry = geometry_of[uid]
        points = geometry.index_to_world(random.uniform(0, np.asarray(geometry.shape) - 1, (number, 3)))
        parts.append(pd.DataFrame(points, columns=COORDINATES).assign(seriesuid=uid, **{"class": 0}))
    pd.concat(parts)[["seriesuid", *COORDINATES, "class"]].to_csv(folder / "candidates.csv", index=False)


def test_full_size_in_three_seconds(tmp_path, shared_data):
    tables = shared_data / "luna16_tables"
    write_full_size(tmp_path, tables, tables / "luna16_mhd_headers.zip")
    start = time.process_time()
    candidates = read_candidates(tmp_path)
    assert time.process_time() - start < 3
    assert len(candidates) == 551_065
    train, validation = split_by_stride(candidates, 10)
    assert (len(train), len(validation)) == (495_958, 55_107)
    assert (candidates.loc[: 1186 - 1, "class"] == 1).all()
    for fold in range(10):
        train, validation = split_by_subset(candidates, fold)
        assert not set(train["seriesuid"]) & set(validation["seriesuid"])
        assert validation["seriesuid"].nunique() in (88, 89)


def test_rows_without_ct_are_dropped_and_counted(make_dataset, caplog):
    folder = make_dataset(scans=3, candidates=4)
    (folder / "subset1" / "1.2.3.1.mhd").unlink()
    with caplog.at_level(logging.INFO):
        candidates = read_candidates(folder)
    assert set(candidates["seriesuid"]) == {"1.2.3.0", "1.2.3.2"}
    assert "4 of 12 candidates dropped, because the CTs of 1 series are not in" in caplog.text


def test_candidates_outside_their_volume(make_dataset, caplog):
    folder = make_dataset(scans=2, candidates=5)
    with (folder / "candidates.csv").open("a") as file:
        file.write("1.2.3.1,900.0,-120.0,-190.0,0\n")
    with pytest.raises(LunaError, match=r"1 candidates lie outside their CT: 1\.2\.3\.1 at \(900, -120, -190\) mm"):
        read_candidates(folder)
    with caplog.at_level(logging.INFO):
        assert len(read_candidates(folder, outside_volume="drop")) == 10
    assert "1 candidates lie outside their CT" in caplog.text


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, -1, 0, 0, 0, 1)])
@pytest.mark.parametrize("x", [-0.5, 59.5])
def test_candidates_half_a_voxel_outside(make_dataset, direction, x):
    """If axes are flipped, a half is rounded to another voxel."""
    folder = make_dataset(scans=1, candidates=5)
    path = folder / "subset0" / "1.2.3.0.mhd"
    image = sitk.ReadImage(str(path))
    image.SetDirection(direction)
    image.SetSpacing((0.5, 0.5, 1.0))
    image.SetOrigin((100.0, 100.0, -50.0))
    sitk.WriteImage(image, str(path))
    world = image.TransformContinuousIndexToPhysicalPoint((x, 20, 20))
    table = pd.DataFrame([("1.2.3.0", *world, 0)], columns=["seriesuid", *COORDINATES, "class"])
    assert len(outside_of(table, {"1.2.3.0": read_header(path)})) == 1


def test_candidates_v2_takes_the_place_of_a_missing_table(make_dataset):
    folder = make_dataset(scans=2, candidates=5)
    (folder / "candidates.csv").rename(folder / "candidates_V2.csv")
    assert len(read_candidates(folder)) == 10
    with pytest.raises(LunaError, match=r"no mine\.csv in this folder"):
        read_candidates(folder, candidates_file="mine.csv")


def damage_missing_annotations(folder):
    (folder / "annotations.csv").unlink()


def damage_missing_candidates(folder):
    (folder / "candidates.csv").unlink()


def damage_empty(folder):
    (folder / "candidates.csv").write_text("")


def damage_header_only(folder):
    (folder / "candidates.csv").write_text("seriesuid,coordX,coordY,coordZ,class\n")


def damage_column(folder):
    table = pd.read_csv(folder / "candidates.csv")
    table.rename(columns={"coordY": "y"}).to_csv(folder / "candidates.csv", index=False)


def damage_number(folder):
    with (folder / "candidates.csv").open("a") as file:
        file.write("1.2.3.1,1.0,two,3.0,0\n")


def damage_nothing_where_a_number_is_needed(folder):
    with (folder / "annotations.csv").open("a") as file:
        file.write("1.2.3.1,1.0,2.0,3.0,\n")


def damage_class(folder):
    with (folder / "candidates.csv").open("a") as file:
        file.write("1.2.3.1,1.0,2.0,3.0,2\n")


def damage_binary(folder):
    (folder / "candidates.csv").write_bytes(bytes(range(256)) * 10)


def damage_no_ct(folder):
    for path in folder.glob("subset*/*.mhd"):
        path.unlink()


def damage_copy(folder):
    (folder / "subset1" / "1.2.3.1 - Copy.mhd").write_bytes((folder / "subset1" / "1.2.3.1.mhd").read_bytes())


def damage_two_subsets(folder):
    (folder / "subset0" / "1.2.3.1.mhd").write_bytes((folder / "subset1" / "1.2.3.1.mhd").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_annotations, r"annotations\.csv: no such file"),
        (damage_missing_candidates, r"no candidates\.csv or candidates_V2\.csv in this folder"),
        (damage_empty, r"candidates\.csv: the file is empty"),
        (damage_header_only, r"candidates\.csv: none of its 0 series has a CT on disk"),
        (damage_column, r"candidates\.csv: no column 'coordY' in the header line, found seriesuid,coordX,y,"),
        (damage_number, r"candidates\.csv, line 12: 'coordY' must be a number, found 'two'"),
        (
            damage_nothing_where_a_number_is_needed,
            r"annotations\.csv, line 4: 'diameter_mm' must be a number, found",
        ),
        (damage_class, r"candidates\.csv, line 12: 'class' must be 0 or 1, found 2"),
        (damage_binary, r"candidates\.csv: not a CSV table|candidates\.csv: no column"),
        (damage_no_ct, r"none of its 2 series has a CT on disk; found 0 scans in .*luna/subset"),
        (damage_two_subsets, r"the same series is also in"),
        (damage_copy, r"1\.2\.3\.1 - Copy\.mhd: the same series is also in .*1\.2\.3\.1\.mhd"),
    ],
)
def test_damaged_tables_get_one_clear_line(make_dataset, damage, message):
    folder = make_dataset(scans=2, candidates=5)
    damage(folder)
    with pytest.raises(LunaError, match=message) as caught:
        read_candidates(folder)
    assert "\n" not in str(caught.value)


def test_missing_dataset_folder(tmp_path):
    with pytest.raises(LunaError, match=r"no such folder; dataset_dir contains LUNA16.s subset0"):
        read_candidates(tmp_path / "nowhere")


def test_split_by_subset_names_the_folds_that_have_scans(make_dataset):
    folder = make_dataset(scans=3, candidates=5)
    candidates = read_candidates(folder)
    train, validation = split_by_subset(candidates, 1)
    assert set(validation["seriesuid"]) == {"1.2.3.1"}
    assert set(train["seriesuid"]) == {"1.2.3.0", "1.2.3.2"}
    with pytest.raises(LunaError, match=r"fold 7: no scan with candidates in .*subset7; folds with scans: 0, 1, 2"):
        split_by_subset(candidates, 7)
    copied = pd.DataFrame(candidates.to_dict("list"))
    assert set(split_by_subset(copied, 1, dataset_dir=folder)[1]["seriesuid"]) == {"1.2.3.1"}
    with pytest.raises(LunaError, match="the dataset folder of the candidate table is unknown; pass dataset_dir"):
        split_by_subset(copied, 1)


def test_split_by_subset_needs_something_to_train_on(make_dataset):
    folder = make_dataset(scans=1, candidates=5)
    with pytest.raises(LunaError, match=r"has scans in subset. only; add another"):
        split_by_subset(read_candidates(folder), 0)


@pytest.mark.parametrize("val_stride", [0, 1, -3])
def test_split_by_stride_needs_a_stride_that_leaves_both_parts(make_dataset, val_stride):
    with pytest.raises(LunaError, match="val_stride must be at least 2"):
        split_by_stride(read_candidates(make_dataset(scans=1, candidates=5)), val_stride)
