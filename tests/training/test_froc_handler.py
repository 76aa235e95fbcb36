"""LUNA16's score of a validation reaches the engine's metrics, the console and nothing else."""

import logging
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from ignite.engine import Engine

from luna_monai.data import DatasetScans
from luna_monai.errors import LunaError
from luna_monai.metrics.froc import evaluate_froc
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.training import FROC_METRICS, ConsoleHandler, FrocMetrics

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


@pytest.fixture
def dataset_dir(tmp_path):
    """Write annotations of two scans, each with one nodule, and of a third one that is not validated."""
    rows = ["1.2.0,0,0,0,10", "1.2.1,50,0,0,10", "1.2.9,0,0,0,10"]
    (tmp_path / "annotations.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (tmp_path / "annotations_excluded.csv").write_text(HEADER + "1.2.1,-50,0,0,10\n")
    return tmp_path


@pytest.fixture
def candidates():
    """Return two hits on one nodule, one on an excluded finding and four false positives; one nodule is not hit."""
    places = [("1.2.0", 0), ("1.2.0", 1), ("1.2.1", -50), *(("1.2.0", 100 + x) for x in range(4))]
    table = pd.DataFrame(places, columns=["seriesuid", "coordX"]).assign(coordY=0.0, coordZ=0.0)
    return table.assign(**{"class": [1, 1, 0, 0, 0, 0, 0]}).set_index(pd.RangeIndex(20, 27))


def make(candidates, dataset_dir):
    return FrocMetrics(candidates, candidates, DatasetScans(dataset_dir))


def records(probability):
    # In another order than the table's, as shuffled or distributed validation would have it.
    frame = pd.DataFrame({"row": range(20, 27), "probability": np.float32(probability)})
    return frame.iloc[::-1].reset_index(drop=True)


def test_values(dataset_dir, candidates):
    metrics = make(candidates, dataset_dir).evaluate(records([0.2, 0.8, 0.99, 0.9, 0.5, 0.4, 0.1]))
    assert tuple(metrics) == FROC_METRICS
    # One false positive above the hit in two scans: nothing is found below half a false positive per scan.
    sensitivities = [metrics[f"sensitivity/{rate}"] for rate in ("0.125", "0.25", "0.5", "1", "2", "4", "8")]
    assert sensitivities == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert metrics["cpm"] == pytest.approx(2.5 / 7)


def test_scans_without_candidates_count(dataset_dir, candidates):
    """As for ``luna-monai crossval``: a scan of the same subset without any candidate has no false positive."""
    for name in ("1.2.0", "1.2.1", "1.2.5", "1.2.6"):
        (dataset_dir / "subset0").mkdir(exist_ok=True)
        (dataset_dir / "subset0" / f"{name}.mhd").touch()
    trained = pd.concat([candidates, candidates[:1].assign(seriesuid="1.2.6")])
    handler = FrocMetrics(candidates, trained, DatasetScans(dataset_dir))
    assert handler.seriesuids == ["1.2.0", "1.2.1", "1.2.5"]


def test_without_excluded_findings(dataset_dir, candidates):
    (dataset_dir / "annotations_excluded.csv").unlink()
    metrics = make(candidates, dataset_dir).evaluate(records([0.2, 0.8, 0.99, 0.9, 0.5, 0.4, 0.1]))
    assert (metrics["sensitivity/0.5"], metrics["sensitivity/1"]) == (0, 0.5)


def test_undefined(dataset_dir, candidates):
    handler = make(candidates, dataset_dir)
    diverged = handler.evaluate(records([0.2, np.nan, 0.99, 0.9, 0.5, 0.4, 0.1]))
    assert all(np.isnan(diverged[name]) for name in FROC_METRICS)
    (dataset_dir / "annotations.csv").write_text(HEADER + "1.2.9,0,0,0,10\n")
    without_nodules = make(candidates, dataset_dir).evaluate(records([0.5] * 7))
    assert all(np.isnan(without_nodules[name]) for name in FROC_METRICS)


def test_missing_annotations(candidates, tmp_path):
    with pytest.raises(LunaError, match=r"annotations\.csv: no such file"):
        FrocMetrics(candidates, candidates, DatasetScans(tmp_path))


def test_console(dataset_dir, candidates, caplog):
    said = records([0.2, 0.8, 0.99, 0.9, 0.5, 0.4, 0.1])

    def step(engine, _):
        engine.state.records = said
        engine.state.metrics.update(per_class_metrics([0, 1], [0.1, 0.9], [0.1, 0.1]))

    caplog.set_level(logging.INFO, logger="luna_monai")
    engine = Engine(step)
    make(candidates, dataset_dir).attach(engine)
    ConsoleHandler("val").attach(engine)
    engine.run([torch.zeros(1)])
    expected = (
        "E1 val      0.3571 CPM, sensitivity 0.000 0.000 0.500 0.500 0.500 0.500 0.500 "
        "at 1/8 1/4 1/2 1 2 4 8 false positives per scan, counted as in LUNA16"
    )
    assert caplog.records[-1].getMessage() == expected


def test_full_size_is_cheap(shared_data):
    """All 888 scans with 55,677 candidates: far less than an epoch's validation takes."""
    tables = shared_data / "luna16_tables"
    candidates = pd.read_csv(tables / "deeplung_detections.csv")
    handler = FrocMetrics(candidates, candidates, SimpleNamespace(paths={}, dataset_dir=tables))
    said = pd.DataFrame({"row": candidates.index, "probability": candidates["probability"]})
    start = time.process_time()
    metrics = handler.evaluate(said)
    assert time.process_time() - start < 5
    seriesuids = (tables / "seriesuids.csv").read_text().split()
    findings = [pd.read_csv(tables / f"annotations{suffix}.csv") for suffix in ("", "_excluded")]
    expected = evaluate_froc(candidates, *findings, seriesuids)
    assert metrics["sensitivity/8"] == pytest.approx(expected.sensitivity[-1], abs=0.02)
