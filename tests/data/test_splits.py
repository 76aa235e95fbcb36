"""No scan is on both sides of a split, unless the book's split was asked for, and then it says so."""

import logging

import pandas as pd
import pytest

from luna_monai.data import check_split, read_candidates, read_patients, split_by_stride, split_by_subset
from luna_monai.errors import LunaError


@pytest.fixture
def candidates():
    """Return six scans with four candidates each, in shuffled order; every second scan has a nodule."""
    rows = [(f"1.2.{number}", place) for place in range(4) for number in (3, 0, 5, 1, 4, 2)]
    table = pd.DataFrame(rows, columns=["seriesuid", "coordX"])
    number = table["seriesuid"].str[-1].astype(int)
    return table.assign(**{"class": ((number % 2 == 0) & (table["coordX"] == 0)).astype(int)})


def scans(part):
    return sorted(part["seriesuid"].str[-1].astype(int).unique().tolist())


def by_number(candidates, stride):
    chosen = candidates["seriesuid"].str[-1].astype(int) % stride == 0
    return candidates[~chosen], candidates[chosen]


def test_subsets_by_patient(make_dataset, tmp_path):
    folder = make_dataset(scans=4)  # scan i is in subset i
    candidates = read_candidates(folder)
    path = tmp_path / "mapping.csv"
    lines = ["PatientID,SeriesInstanceUID", "A,1.2.3.0", "B,1.2.3.1", "C,1.2.3.2", "B,1.2.3.3", "Z,1.2.3.99"]
    path.write_text("\n".join(lines) + "\n")
    assert scans(split_by_subset(candidates, 1, dataset_dir=folder)[1]) == [1]
    validated = [scans(split_by_subset(candidates, fold, path, folder)[1]) for fold in (0, 1, 2)]
    assert validated == [[0], [1, 3], [2]]
    training, validation = split_by_subset(candidates, 1, path, folder)
    assert (scans(training), scans(validation)) == ([0, 2], [1, 3])
    with pytest.raises(LunaError, match=r"fold 3: no scan with candidates in .*; folds with scans: 0, 1, 2$"):
        split_by_subset(candidates, 3, path, folder)


def test_unknown_and_contradictory_patients(make_dataset, tmp_path):
    folder = make_dataset(scans=2)
    path = tmp_path / "mapping.csv"
    path.write_text("PatientID,SeriesInstanceUID\nA,1.2.3.0\n")
    with pytest.raises(LunaError, match=r"mapping\.csv: no patient for series 1\.2\.3\.1; add a row"):
        split_by_subset(read_candidates(folder), 1, path, folder)
    path.write_text("PatientID,SeriesInstanceUID\nA,1.2.3.0\nB,1.2.3.0\n")
    with pytest.raises(LunaError, match=r"series 1\.2\.3\.0 is listed with two patients"):
        read_patients(path)


def test_published_mapping(shared_data):
    tables = shared_data / "luna16_tables"
    patients = read_patients(tables / "LIDC-IDRI-mappingLUNA16.csv")
    series = (tables / "seriesuids.csv").read_text().split()
    of_luna16 = patients.loc[series]
    assert len(of_luna16) == 888
    assert of_luna16[of_luna16.duplicated()].tolist() == ["LIDC-IDRI-0332"]


def test_split_table(candidates, caplog):
    caplog.set_level(logging.INFO, logger="luna_monai")
    check_split(*by_number(candidates, 3))
    lines = [record.getMessage().split() for record in caplog.records]
    assert lines == [
        ["part", "scans", "candidates", "nodule", "candidates"],
        ["training", "4", "16", "2"],
        ["validation", "2", "8", "1"],
    ]


def test_a_scan_on_both_sides_is_refused(candidates):
    training, validation = by_number(candidates, 2)
    moved = validation["seriesuid"] == "1.2.4"
    one_candidate = validation[moved].head(1)
    with pytest.raises(LunaError, match=r"1 of 3 validation scans have candidates in the training part.*1\.2\.4"):
        check_split(pd.concat([training, one_candidate]), validation.drop(one_candidate.index))


def test_a_candidate_on_both_sides_is_refused_even_where_scans_may_be(candidates):
    training, validation = split_by_stride(candidates, 5)
    with pytest.raises(LunaError, match="2 candidates are in both parts, the first in row 0"):
        check_split(pd.concat([training, validation.head(2)]), validation, allow_shared_scans=True)


def test_the_books_split_says_that_it_leaks(candidates, caplog):
    training, validation = split_by_stride(candidates, 10)  # rows 0, 10 and 20: scans 3, 4 and 5
    check_split(training, validation, allow_shared_scans=True)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.getMessage().startswith("This split leaks: 3 of 3 validation scans have candidates in the training")
    with pytest.raises(LunaError, match="3 of 3 validation scans"):
        check_split(training, validation)
