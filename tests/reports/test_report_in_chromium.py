"""The report in a browser: no error on its console, every image loads, tables sort, nothing overflows a phone."""

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from luna_monai.detection.findings import Finding
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction
from luna_monai.reports import PredictionPage
from luna_monai.reports.pictures import image_url
from luna_monai.scans.geometry import Geometry

PROBE = """
<pre id="probe"></pre>
<script>
addEventListener("load", () => {
  const found = {};
  const images = [...document.images];
  found.images = images.length;
  found.loaded = images.filter((image) => image.complete && image.naturalWidth > 0).length;
  found.sorts = [];
  for (const table of document.querySelectorAll("table")) {
    const rows = () => [...table.tBodies[0].rows];
    for (const button of table.querySelectorAll("th button")) {
      const column = button.parentElement.cellIndex;
      const keys = () => rows().map((row) => row.cells[column].textContent);
      const before = rows().length;
      button.click();
      const rising = keys();
      const first = button.parentElement.ariaSort;
      button.click();
      const falling = keys();
      const second = button.parentElement.ariaSort;
      found.sorts.push({ rising, falling, first, second, kept: rows().length === before });
    }
  }
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
  const card = document.querySelector(".finding");
  if (card) {
    const stack = card.querySelector(".stack");
    const top = () => stack.querySelector(".layers").getBoundingClientRect().top;
    const start = top();
    const height = stack.querySelector(".view").getBoundingClientRect().height;
    stack.querySelector("input").value = 0;
    stack.querySelector("input").dispatchEvent(new Event("input", { bubbles: true }));
    found.scrolled = Math.round((top() - start) / height);
    found.label = stack.querySelector("output").textContent;
    stack.querySelector(".view").dispatchEvent(new WheelEvent("wheel", { deltaY: 1, bubbles: true, cancelable: true }));
    found.wheel = stack.querySelector("output").textContent;
    const turn = new WheelEvent("wheel", { deltaY: 1, bubbles: true, cancelable: true });
    stack.querySelector("input").value = stack.querySelector("input").max;
    stack.querySelector(".view").dispatchEvent(turn);
    found.wheelAtTheEnd = turn.defaultPrevented;
    card.querySelector(".enlarge").click();
    found.enlarged = document.querySelectorAll("dialog[open] .stack").length;
    document.querySelector("dialog").close();
    document.querySelector(".min-probability").value = 0.5;
    document.querySelector(".min-probability").dispatchEvent(new Event("input", { bubbles: true }));
    const seen = (query) => [...document.querySelectorAll(query)].filter((one) => one.checkVisibility()).length;
    found.filtered = [seen(".findings tbody tr"), seen(".finding"), seen(".overview .mark")];
    document.execCommand = () => { found.copied = document.activeElement.value; return true; };
    document.querySelector(".copy").click();
    document.querySelector(".min-probability").value = 0;
    document.querySelector(".min-probability").dispatchEvent(new Event("input", { bubbles: true }));
  }
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  found.ink = getComputedStyle(document.body).color;
  const shown = () => [...document.querySelectorAll(".heat")].filter((image) => image.checkVisibility()).length;
  const heat = [shown()];
  document.getElementById("heat-shown")?.click();
  found.heat = [...heat, shown()];
  document.getElementById("probe").textContent = JSON.stringify(found);
});
</script>
</body>"""


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    return path


def look(chromium, page, profile, dark):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=500,900"]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
    done = subprocess.run([chromium, *flags], capture_output=True, text=True, timeout=120, check=True)
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(probe[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), errors


@pytest.fixture
def predicted_page():
    """A page of a prediction with two findings, one of them with an attribution map."""
    shape = (40, 60, 64)
    geometry = Geometry(shape[::-1], (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    table = pd.DataFrame(0, index=range(2), columns=list(COLUMNS)).assign(probability=[0.75, 0.25])
    outline = {
        "outline": np.ones((3, 5, 5), bool),
        "outline_start": (18, 28, 8),
        "diameter_mm": 6.0,
        "long_axis_mm": 7.0,
    }
    sizes = {"short_axis_mm": 5.0, "volume_mm3": 1500.0, "mean_hu": 30.0, "attenuation": "solid", "lung": "right"}
    findings = (Finding((10.0, 30.0, 38.0), 0.75, (0,), **outline, **sizes), Finding((50.0, 30.0, 38.0), 0.25, (1,)))
    model = ModelFacts("model.pt", "ab" * 32, "0.1.0", {"4 false positives per scan": 0.5})
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.272190966764020277652079081128"
    prediction = ScanPrediction(
        uid, geometry, table, model, proposed=True, findings=findings, shown=2, warnings=("no lung " * 30,)
    )
    heat = np.zeros(shape, dtype=np.uint8)
    heat[18:21, 28:33, 8:13] = 255
    page = PredictionPage("report.html")
    page.add(0, prediction, np.full(shape, -850, np.int16), geometry, heat)
    return page.to_html()


def test_prediction_in_light_and_dark(chromium, predicted_page, tmp_path):
    page = tmp_path / "probe.html"
    page.write_text(predicted_page.replace("</body>", PROBE))
    light, errors = look(chromium, page, tmp_path / "profile1", dark=False)
    assert errors == []
    assert light["images"] == light["loaded"] == predicted_page.count("<img ") == 6 + 3 + 1
    assert light["overflow"] <= 0, "the page itself never scrolls sideways"
    assert light["heat"] == [0, 3], "attribution maps are off until asked for"
    assert (light["scrolled"], light["label"], light["wheel"]) == (
        7,
        "slice 13 of 40, -14.0 mm",
        "slice 14 of 40, -12.0 mm",
    )
    assert light["enlarged"] == 3
    assert not light["wheelAtTheEnd"], "the page scrolls"
    assert light["filtered"] == [1, 1, 1], "rows, cards and numbers on the map together"
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.272190966764020277652079081128"
    assert light["copied"].splitlines() == [
        "seriesuid,finding,coordX,coordY,coordZ,probability,probability_calibrated,diameter_mm,long_axis_mm,"
        "short_axis_mm,volume_mm3,mean_hu,pleura_distance_mm,attenuation,lung,candidates,slice",
        f"{uid},1,10.0,30.0,38.0,0.75,0.0,6.0,7.0,5.0,1500.0,30.0,,solid,right,1,20",
    ]
    assert all(sort["kept"] and sort["rising"] == sort["falling"][::-1] for sort in light["sorts"][:3])
    dark, errors = look(chromium, page, tmp_path / "profile2", dark=True)
    assert errors == []
    assert (light["ink"], dark["ink"]) == ("rgb(28, 36, 48)", "rgb(231, 236, 242)")


def test_printed_pictures_are_those_of_the_page(chromium, predicted_page, tmp_path):
    """A stack of slices is taller than a printed page. Page breaks must not move it."""
    if shutil.which("pdftoppm") is None:
        pytest.skip("pdftoppm is not installed (Debian: poppler-utils)")
    page = tmp_path / "page.html"
    # The slice in the middle of the stack is red, all others are black.
    stripes = np.zeros((15, 8, 8, 3), dtype=np.uint8)
    stripes[7, ..., 0] = 255
    address = image_url(stripes.reshape(-1, 8, 3))
    html = re.sub(r'(<img src=")data:image/webp[^"]*(" alt="Finding 1, axial)', rf"\1{address}\2", predicted_page)
    page.write_text(html.replace('class="outline"', 'class="outline" hidden'))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", page.as_uri()]
    subprocess.run([chromium, *flags], capture_output=True, timeout=120, check=True)
    subprocess.run(["pdftoppm", "-r", "50", tmp_path / "page.pdf", tmp_path / "sheet"], check=True)
    sheets = [np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("sheet*.ppm"))]
    assert len(sheets) <= 3
    red = sum(int(((sheet[..., 0] > 200) & (sheet[..., 1:] < 60).all(axis=-1)).sum()) for sheet in sheets)
    assert red > 1500, "the picture is about 40 mm wide"


def test_printed_tables_repeat_their_header(chromium, predicted_page, tmp_path):
    if shutil.which("pdftotext") is None:
        pytest.skip("pdftotext is not installed (Debian: poppler-utils)")
    row = re.search(r'<tr id="s1f1-row".*?</tr>', predicted_page, flags=re.DOTALL)[0]
    (tmp_path / "page.html").write_text(predicted_page.replace(row, 150 * row))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}", (tmp_path / "page.html").as_uri()]
    subprocess.run([chromium, *flags], capture_output=True, timeout=120, check=True)
    command = ["pdftotext", "-layout", tmp_path / "page.pdf", "-"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(re.findall("^ *finding .* slice ", text, flags=re.MULTILINE)) >= 3


def test_in_light_and_dark(chromium, reported_run, tmp_path):
    html = (reported_run / "report.html").read_text(encoding="utf-8")
    page = tmp_path / "probe.html"
    page.write_text(html.replace("</body>", PROBE))
    light, errors = look(chromium, page, tmp_path / "profile1", dark=False)
    assert errors == []
    assert light["images"] == light["loaded"] == html.count("<img ") > 0
    assert light["overflow"] <= 0, "the page itself never scrolls sideways"
    assert len(light["sorts"]) == 4
    for sort in light["sorts"]:
        assert sort["kept"]
        assert (sort["first"], sort["second"]) == ("ascending", "descending")
        for keys, reverse in ((sort["rising"], False), (sort["falling"], True)):
            try:
                numbers = [float(key) for key in keys]
            except ValueError:
                continue
            assert numbers == sorted(numbers, reverse=reverse)
    assert any(sort["rising"] != sort["falling"] for sort in light["sorts"])
    dark, errors = look(chromium, page, tmp_path / "profile2", dark=True)
    assert errors == []
    assert (light["ink"], dark["ink"]) == ("rgb(28, 36, 48)", "rgb(231, 236, 242)")
