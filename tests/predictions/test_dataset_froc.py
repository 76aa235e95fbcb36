"""LUNA16's FROC of the predictions for a dataset folder."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from luna_monai.errors import LunaError
from luna_monai.predictions import DatasetFroc

from .conftest import make_prediction

COLUMNS = ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]


@pytest.fixture
def predictions(geometry):
    """Two scans: two nodules with two candidates on each, of which findings are made, and nothing."""
    indices = [[10, 10, 10], [10, 11, 10], [20, 40, 40], [20, 40, 41], [30, 5, 50]]
    first = make_prediction(geometry, indices, [0.9, 0.8, 0.7, 0.6, 0.5])
    first = replace(first, findings=tuple(first.findings[k] for k in (0, 2, 4)))
    empty = first.candidates.iloc[:0]
    return [first, replace(first, seriesuid="4.5.6", candidates=empty, findings=())]


def write_annotations(folder, geometry, indices, **columns):
    table = pd.DataFrame(geometry.index_to_world(np.array(indices, dtype=float)), columns=COLUMNS[1:4])
    table = table.assign(seriesuid="1.2.3", diameter_mm=6.0, **columns)
    table[COLUMNS].to_csv(folder / "annotations.csv", index=False)
    return folder


def test_findings_are_evaluated_beside_candidates(tmp_path, geometry, predictions, caplog):
    caplog.set_level("INFO")
    dataset = write_annotations(tmp_path, geometry, [[10, 10, 10], [20, 40, 40]])
    froc = DatasetFroc(tmp_path / "froc.json", dataset)
    froc.write(predictions)
    content = json.loads((tmp_path / "froc.json").read_text())
    assert [content[name]["total_number_of_candidates"] for name in ("candidates", "findings")] == [5, 3]
    assert [content[name]["ignored_double_detections"] for name in ("candidates", "findings")] == [2, 0]
    for name, line in zip(("candidates", "findings"), caplog.messages[-2:], strict=True):
        assert content[name]["scans"] == 2, "the scan without findings counts"
        assert (content[name]["true_positives"], content[name]["false_positives"]) == (2, 1)
        assert content[name]["sensitivity"] == [1.0] * 7
        assert line == (
            f"FROC of the {name}: 2 nodules in 2 scans, sensitivity 1.000 at 1 and 1.000 at 4 "
            "false positives per scan, CPM 1.0000"
        )


def test_without_nodules_the_metrics_are_undefined(tmp_path, geometry, predictions, caplog):
    caplog.set_level("INFO")
    dataset = write_annotations(tmp_path, geometry, np.zeros((0, 3)))
    DatasetFroc(tmp_path / "froc.json", dataset).write(predictions)
    assert caplog.messages[-1] == "FROC of the findings: no annotated nodule in 2 scans"
    assert json.loads((tmp_path / "froc.json").read_text())["findings"]["cpm"] is None


def test_a_folder_without_annotations_is_refused_before_the_prediction(tmp_path):
    with pytest.raises(LunaError, match=r"annotations\.csv"):
        DatasetFroc(tmp_path / "froc.json", tmp_path)
