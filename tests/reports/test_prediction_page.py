"""The page about predictions: what it says is what the model said, and nothing else is in it."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from luna_monai.detection.findings import find_findings
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import Calibration
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction, describe_findings
from luna_monai.reports import PredictionPage
from luna_monai.reports.pages import show
from luna_monai.reports.pictures import heat_colors
from luna_monai.reports.prediction import draw_map
from luna_monai.scans.geometry import Geometry

SHAPE = (40, 60, 64)
GEOMETRY = Geometry(SHAPE[::-1], (1.0, 1.0, 2.0), (-30.0, -20.0, 5.0), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))


@pytest.fixture
def voxels():
    """Lung with a ball of tissue of 4 mm at (20, 30, 32)."""
    values = np.full(SHAPE, -850, dtype=np.int16)
    z, y, x = np.indices(SHAPE)
    values[(2 * (z - 20)) ** 2 + (y - 30) ** 2 + (x - 32) ** 2 <= 16] = 40
    return values


def predicted(voxels, indices, probability, seriesuid="1.2.3", shown=None, **changes):
    """Findings at voxels z, y, x, most probable first."""
    points = GEOMETRY.index_to_world(np.reshape(indices, (-1, 3)))
    probability = np.asarray(probability, dtype=float)
    findings = find_findings(voxels, GEOMETRY, points, probability)
    table = pd.DataFrame(points, columns=["coordX", "coordY", "coordZ"])
    table = table.assign(seriesuid=seriesuid, probability=probability, probability_calibrated=probability / 2)
    facts = {
        "seriesuid": seriesuid,
        "geometry": GEOMETRY,
        "candidates": table[list(COLUMNS)],
        "model": ModelFacts("model.pt", "ab" * 32, "0.1.0", {}),
        "proposed": True,
        "findings": tuple(findings),
        "shown": len(findings) if shown is None else shown,
    }
    return ScanPrediction(**(facts | changes))


def page_of(*predictions, voxels, heat=None, **options):
    page = PredictionPage("report.html", **options)
    for number, prediction in enumerate(predictions):
        page.add(number, prediction, voxels, GEOMETRY, heat)
    return page


def pictures(html):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall(r'<img src="data:image/webp;base64,([^"]+)"', html)
    ]


def test_texts_of_the_page(voxels, tmp_path):
    model = ModelFacts(
        "model.pt", "ab" * 32, "0.1.0", {"4 false positives per scan": 0.25}, Calibration(1, -3, 0.0074), True
    )
    prediction = predicted(
        voxels, [(20, 30, 32), (5, 6, 7), (39, 0, 63)], [0.99958, 0.3, 1.5e-7], shown=2, threshold=0.25, model=model,
        warnings=("no lung was found; is this <a chest> CT?",),
    )  # fmt: skip
    page = PredictionPage(tmp_path / "new" / "report.html")
    page.add(0, prediction, voxels, GEOMETRY, None)
    page.write()
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "2 of 3 findings have a probability of at least 0.2500. The page shows all of them. The highest" in html
    assert "no lung was found; is this &lt;a chest&gt; CT?" in html
    assert "Not for clinical use" in html
    assert "assumes that 0.74% of all candidates are nodules" in html
    assert "trained on <b>synthetic</b> scans" in html
    assert re.search(r"<td>4 false positives per scan</td><td[^>]*>0.2500</td><td[^>]*>2</td>", html)
    cards = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert len(cards) == 2
    first = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", cards[0]))
    finding = prediction.findings[0]
    assert first["diameter"] == f"{finding.diameter_mm:.1f} mm"
    assert first["x, y, z (LPS)"] == "2.0, 10.0, 45.0 mm"
    assert first["slice"] == "slice 21 of 40"
    assert "no outline was found" in dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", cards[1]))["diameter"]
    # Rows and cards lead to each other; what is not shown has a row alone.
    assert len(re.findall(r'<tr id="s1f\d-row"', html)) == 3
    assert re.findall(r'<a href="#(s1f\d)">', html) == ["s1f1", "s1f2"]
    assert "home" not in html
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', html) == []


def test_stacks_of_slices_with_outline_letters_and_scale(voxels):
    html = page_of(predicted(voxels, [(20, 30, 32)], [0.9]), voxels=voxels).to_html()
    axial, coronal, sagittal = pictures(html)
    # 7 slices of 2 mm to each side, 60 mm in 144 pixels; the ball is in the middle one and not in the outer ones.
    assert axial.shape[:2] == (15 * 144, 144)
    middle = axial[7 * 144 : 8 * 144, :, 0] if axial.ndim == 3 else axial[7 * 144 : 8 * 144]
    assert middle[72, 72] > 200 > 100 > middle[20, 20]
    assert (axial[72, 72] < 100).all()
    assert coronal.shape[1] == sagittal.shape[1] == 144
    assert html.count('class="outline"') == 3
    letters = re.findall(r'<span class="side \w+">(\w)</span>', html)
    assert "".join(letters) == "RLAPRLSIAPSI"
    assert html.count('<span class="bar">10 mm') == 3
    labels = re.search(r'data-labels="([^"]*)"', html)[1].split("|")
    assert (labels[0], labels[7], labels[14]) == ("slice 14 of 40", "slice 21 of 40", "slice 28 of 40")
    # The outline is a circle of 4 mm in the middle of the middle slice.
    path = re.search(r'<path d="(M[^"]*)"', html)[1]
    points = np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", path)])
    inside = points[(points[:, 1] >= 7 * 60) & (points[:, 1] < 8 * 60)] - (30, 7 * 60 + 30)
    assert np.linalg.norm(inside, axis=1) == pytest.approx(4.3, abs=0.9)


def test_attribution_maps_are_off_until_asked_for(voxels):
    prediction = predicted(voxels, [(20, 30, 32), (20, 30, 12)], [0.9, 0.8])
    heat = np.zeros(SHAPE, dtype=np.uint8)
    heat[18:22, 28:33, 30:35] = 255
    html = page_of(prediction, voxels=voxels, heat=heat).to_html()
    assert html.count('class="heat"') == 6  # the other finding is 20 mm away
    assert 'id="heat-shown">' in html
    plain = page_of(prediction, voxels=voxels).to_html()
    assert 'class="heat"' not in plain
    assert 'id="heat-shown"' not in plain


def test_colors_increase_in_opacity_and_luminance():
    colours = heat_colors(np.linspace(0, 1, 50)).astype(int)
    assert colours[0, 3] == 0
    assert (np.diff(colours[:, 3]) >= 0).all()
    luminance = colours[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(luminance) > 0).all()


@pytest.mark.parametrize("count", [1, 12, 60])
def test_numbers_on_the_map_do_not_overlap(count):
    random = np.random.default_rng(count)
    near = random.normal((20, 30, 20), 1.5, (count, 3))  # all in one place
    found = draw_map(np.zeros(SHAPE, dtype=np.int16), GEOMETRY, GEOMETRY.index_to_world(near).tolist())
    marks = np.array(sorted(found["marks"]))
    assert marks[:, 0].tolist() == list(range(1, count + 1))
    assert found["height"] == pytest.approx(450)  # as wide as high in mm: 64 and 80
    assert ((marks[:, 4] >= 0) & (marks[:, 4] <= 450)).all()
    gap = min(17, 450 / count) - 0.01
    for side in np.unique(marks[:, 3]):
        assert (np.diff(np.sort(marks[marks[:, 3] == side, 4])) >= gap).all()
    np.testing.assert_allclose(marks[:, 1], (near[:, 2] + 0.5) / 64 * 360)
    np.testing.assert_allclose(marks[:, 2], (1 - (near[:, 0] + 0.5) / 40) * 450)


def test_the_most_probable_findings_of_all_scans_have_pictures(voxels):
    places = np.random.default_rng(0).integers(5, 35, (6, 3))
    predictions = [
        predicted(voxels, places, np.linspace(highest, 0.01, 6), f"1.2.{number}")
        for number, highest in enumerate((0.5, 0.9, 0.2, 0.8))
    ]
    page = page_of(*predictions, predicted(voxels, [], [], "1.2.9", warnings=("odd",)), voxels=voxels, max_pictures=3)
    html = page.to_html()
    assert "<h1>5 scans</h1>" in html
    titles = re.findall(r'<h2 id="scan\d-title">(.*?)</h2>', html)
    assert titles == ["1.2.0", "1.2.1", "1.2.2", "1.2.3", "1.2.9"]
    assert html.count('<div class="stacks">') == 3
    assert len(page._pictures) == 3
    counts = re.findall(r'<p class="headline">(\d+) of (\d+) findings', html)
    assert counts == [(str(one.above_threshold), str(len(one.findings))) for one in predictions] + [("0", "0")]
    parts = [PredictionPage("report.html", max_pictures=3) for _ in range(2)]
    for number, prediction in enumerate(predictions):
        parts[number % 2].add(number, prediction, voxels, GEOMETRY, None)
    parts[0].merge(parts[1])
    whole = page_of(*predictions, voxels=voxels, max_pictures=3)
    assert parts[0].to_html() == whole.to_html()


def test_each_scan_is_described_once(voxels, monkeypatch):
    described = []

    def describe(prediction):
        described.append(prediction.seriesuid)
        return describe_findings(prediction)

    monkeypatch.setattr("luna_monai.reports.prediction.describe_findings", describe)
    uids = [f"1.2.{number}" for number in range(5)]
    page = page_of(*(predicted(voxels, [(20, 30, 32)], [0.9], uid) for uid in uids), voxels=voxels)
    assert described == []
    page.to_html()
    assert described == uids


def test_many_findings(voxels):
    places = np.argwhere(np.ones((20, 25, 1))) * (2, 2, 1)
    html = page_of(predicted(voxels, places, np.linspace(0.9, 1e-3, 500), shown=4), voxels=voxels).to_html()
    assert html.count("<article") == 4
    assert html.count('<tr id="s1f') == 400
    assert re.search(r"The table lists the first 400 of \d+ findings\.", html)


def test_names(tmp_path):
    with pytest.raises(LunaError, match=r"x\.pdf: the file name must end with \.html"):
        PredictionPage("x.pdf")
    (tmp_path / "x.html").mkdir()
    with pytest.raises(LunaError, match=r"x\.html: is a folder"):
        PredictionPage(tmp_path / "x.html")


def test_a_probability_below_one_is_not_rounded_to_one():
    assert [show(value) for value in (0.99998, 0.981, 1.5e-7, 1.0, 16.1)] == [
        "1.000",
        "0.9810",
        "1.500e-07",
        "1",
        "16.1",
    ]
