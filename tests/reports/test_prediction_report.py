"""The page about predictions: what it says is what the model said, and nothing else is in it."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from luna_monai.errors import LunaError
from luna_monai.predictions.explanation import HeatMap
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction
from luna_monai.reports import PredictionReport, overlay
from luna_monai.scans.geometry import Geometry

SHAPE = (40, 60, 64)


@pytest.fixture
def geometry():
    return Geometry(SHAPE[::-1], (1.0, 1.0, 2.0), (-30.0, -20.0, 5.0), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))


@pytest.fixture
def voxels():
    """Lung with a ball of tissue of 5 voxels at (20, 30, 32)."""
    values = np.full(SHAPE, -850, dtype=np.int16)
    z, y, x = np.indices(SHAPE)
    values[(z - 20) ** 2 + (y - 30) ** 2 + (x - 32) ** 2 <= 9] = 40
    return values


def predicted(geometry, indices, probability, seriesuid="1.2.3", calibrated=False, thresholds=None, warnings=()):
    indices = np.reshape(indices, (-1, 3))
    table = pd.DataFrame(geometry.index_to_world(indices), columns=["coordX", "coordY", "coordZ"])
    table[["index_z", "index_y", "index_x"]] = indices
    table = table.assign(seriesuid=seriesuid, probability=np.asarray(probability, dtype=float))
    table["probability_calibrated"] = table["probability"] / 2 if calibrated else np.nan
    return ScanPrediction(
        seriesuid=seriesuid,
        source="/home/erika.quux/secret/scan.mhd",
        geometry=geometry,
        candidates=table[list(COLUMNS)],
        model=ModelFacts("model.pt", "ab" * 32, "0.1.0", thresholds or {}),
        proposed=True,
        warnings=warnings,
    )


def many(geometry, count, seriesuid="1.2.3", highest=0.99):
    indices = np.random.default_rng(count).integers(0, SHAPE, (count, 3))
    return predicted(geometry, indices, np.linspace(highest, 1e-6, count), seriesuid)


def pictures(html):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'<img[^>]*src="data:image/png;base64,([^"]+)"', html)
    ]


def table_of(html, caption):
    (table,) = [part for part in re.findall(r"<table>.*?</table>", html, re.DOTALL) if f"<caption>{caption}" in part]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", table)]


def test_what_it_says(geometry, voxels, tmp_path):
    thresholds = {"4 false positives per scan": 0.25, "sensitivity 0.9": 0.7}
    warning = "no lung was found; is this <a chest> CT?"
    prediction = predicted(
        geometry,
        [(20, 30, 32), (5, 6, 7), (39, 0, 63)],
        [0.99995, 0.3, 1.5e-7],
        calibrated=True,
        thresholds=thresholds,
        warnings=(warning,),
    )
    report = PredictionReport(tmp_path / "new" / "report.html")
    report.check()
    report.add(prediction, voxels, geometry)
    assert report.write() == [tmp_path / "new" / "report.html"]
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "The most probable of 3 candidates is a nodule with a probability of over 0.9999. 2 are above 0.2500" in html
    assert "no lung was found; is this &lt;a chest&gt; CT?" in html
    assert "not for clinical use" in html
    assert "ab" * 32 in html
    assert table_of(html, "Candidates, most probable first") == [
        ["1", "1 - 5.0e-05", "0.5000", "2.0, 10.0, 45.0", "20, 30, 32"],
        ["2", "0.3000", "0.1500", "-23.0, -14.0, 15.0", "5, 6, 7"],
        ["3", "1.5e-07", "7.5e-08", "33.0, -20.0, 83.0", "39, 0, 63"],
    ]
    above = table_of(html, "Candidates above the model")
    assert above == [["4 false positives per scan", "0.2500", "2"], ["sensitivity 0.9", "0.7000", "1"]]
    # An overview, and three planes of each candidate; the first is in the ball.
    overview, axial, *others = pictures(html)
    assert len(others) == 8
    assert overview.shape[1] == 360
    assert axial[100, 100] > 200 > 100 > axial[20, 20]
    assert "erika" not in html
    assert "home" not in html
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []


def test_the_overview_has_the_patients_head_up_and_the_marks_in_their_places(geometry, voxels):
    report = PredictionReport("report.html")
    report.add(predicted(geometry, [(36, 30, 9)], [0.5]), np.where(np.indices(SHAPE)[0] > 30, 200, voxels), geometry)
    html = report.to_html()
    overview = pictures(html)[0]
    # As wide as high in mm: 64 and 80.
    assert overview.shape == (450, 360)
    assert overview[:80].min() > 200 > 60 > overview[150:].max()
    ((left, top),) = re.findall(r'class="mark" style="left: ([\d.]+)%; top: ([\d.]+)%"', html)
    assert (float(left), float(top)) == (
        pytest.approx(100 * 9.5 / 64, abs=0.01),
        pytest.approx(100 * 3.5 / 40, abs=0.01),
    )


def test_the_heat_is_laid_over_the_candidates_that_have_one(geometry, voxels):
    prediction = predicted(geometry, [(20, 30, 32), (20, 30, 12)], [0.9, 0.8])
    heat = np.where(voxels > 0, 255, 0).astype(np.uint8)
    report = PredictionReport("report.html")
    report.add(prediction, voxels, geometry, HeatMap(heat, geometry, candidates=1))
    html = report.to_html()
    assert html.count('class="heat"') == 3
    assert 'id="heat-shown"' in html
    assert "1 of the 2 candidates shown has one." in html
    laid_over = [picture for picture in pictures(html) if picture.ndim == 3 and picture.shape[0] == 200]
    assert len(laid_over) == 3
    for picture in laid_over:
        assert picture[100, 100].tolist() == overlay.colours(np.ones(1))[0].tolist()
        assert picture[5, 5, 3] == 0

    plain = PredictionReport("report.html")
    plain.add(prediction, voxels, geometry)
    assert 'class="heat"' not in plain.to_html()
    assert 'id="heat-shown"' not in plain.to_html()


def test_colours_go_from_clear_to_bright():
    colours = overlay.colours(np.linspace(0, 1, 50)).astype(int)
    assert colours[0, 3] == 0
    assert (np.diff(colours[:, 3]) >= 0).all()
    luminance = colours[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > 0).all()


def test_many_candidates(geometry, voxels):
    report = PredictionReport("report.html", cases=4)
    report.add(many(geometry, 450), voxels, geometry)
    html = report.to_html()
    assert html.count("<article") == 4
    assert len(table_of(html, "Candidates, most probable first")) == 200
    assert "The first 200 of 450." in html


def test_many_scans_keep_the_most_probable_of_all(geometry, voxels):
    report = PredictionReport("report.html", cases=3)
    for number, highest in enumerate((0.5, 0.9, 0.2, 0.8)):
        report.add(many(geometry, 20 + number, f"1.2.{number}", highest), voxels, geometry)
    report.add(predicted(geometry, [], [], "1.2.9", warnings=("odd",)), voxels, geometry)
    html = report.to_html()
    assert '<h1 class="uid">5 scans</h1>' in html
    assert "odd (1 of 5 scans)" in html
    cases = re.findall(r"<dt>scan</dt><dd>(.*?)</dd>", html)
    assert len(cases) == 3
    assert cases[0] == "1.2.1"
    assert set(cases) <= {"1.2.1", "1.2.3"}
    # Nothing but what is shown is kept, and there is no overview of several scans.
    assert len(pictures(html)) == 9
    assert len(report._pictures) == 3
    rows = table_of(html, "Scans")
    assert [row[:3] for row in rows][1::3] == [["1.2.1", "21", "0.9000"], ["1.2.9", "0", "none"]]
    assert len(table_of(html, "Candidates, most probable first")) == 86


@pytest.mark.parametrize("part", [0, 1, None])
def test_parts_without_a_scan_change_nothing(geometry, voxels, tmp_path, part):
    """Reports of two processes, of which one at most had a scan that could be read."""
    parts = [PredictionReport(tmp_path / "merged.html") for _ in range(2)]
    if part is not None:
        prediction = many(geometry, 3)
        whole = PredictionReport(tmp_path / "whole.html")
        for report in (whole, parts[part]):
            report.add(prediction, voxels, geometry, number=7)
    parts[0].merge(parts[1])
    assert bool(parts[0].write()) == (part is not None)
    if part is not None:
        assert '<figure class="overview">' in whole.to_html()
        assert parts[0].to_html() == whole.to_html()


def test_no_candidate(geometry, voxels):
    report = PredictionReport("report.html")
    report.add(predicted(geometry, [], []), voxels, geometry)
    html = report.to_html()
    assert "There is no candidate to judge." in html
    assert "None is shown." in html


def test_names(tmp_path):
    with pytest.raises(LunaError, match=r"x\.pdf: the name of a report ends with \.html"):
        PredictionReport("x.pdf").check()
    (tmp_path / "x.html").mkdir()
    with pytest.raises(LunaError, match=r"x\.html: a folder"):
        PredictionReport(tmp_path / "x.html").check()
    with pytest.raises(LunaError, match="must not be negative, found -1"):
        PredictionReport("x.html", cases=-1)
    assert PredictionReport(tmp_path / "y.html").write() == []
    assert not (tmp_path / "y.html").exists()
