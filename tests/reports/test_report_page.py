"""The HTML file: complete in itself, right in its numbers, sound in its structure."""

import base64
import logging
import re
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_score, recall_score, roc_auc_score

from luna_monai.apps.cli import run_app
from luna_monai.apps.report import LunaReportApp
from luna_monai.errors import LunaError
from luna_monai.reports.pages import show
from luna_monai.reports.run_report import CASES

VOID = {"meta", "img", "br", "path", "circle", "use", "rect", "link", "input"}


class Page(HTMLParser):
    """Elements with their attributes and text, and whether all are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.disorder = [], [], []
        self.feed(html)
        self.disorder += [element["tag"] for element in self.open]

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open[-1]["tag"] != tag:
            self.disorder.append(tag)
        else:
            self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] = " ".join([*element["text"].split(), *data.split()])

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]

    def tiles(self):
        (tiles,) = self.all("dl", **{"class": "tiles"})
        return tiles["text"]


@pytest.fixture(scope="module")
def html(reported_run):
    return (reported_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture
def report(run_folder):
    def make(*arguments):
        assert LunaReportApp([run_folder, *arguments]).main() == 0
        return Page((run_folder / "report.html").read_text(encoding="utf-8"))

    return make


def test_numbers_are_those_of_the_predictions(page, reported_run):
    table = pd.read_csv(reported_run / "predictions" / "val.csv")
    truth, probability = table["class"] == 1, table["probability"]
    called = probability > 0.5
    tiles = page.tiles()
    assert f"Recall {recall_score(truth, called):.4g}" in tiles
    assert f"Precision {precision_score(truth, called):.4g}" in tiles
    assert f"ROC AUC {roc_auc_score(truth, probability):.4g}" in tiles
    assert f"Average precision {average_precision_score(truth, probability):.4g}" in tiles
    assert "CPM 0." in tiles
    assert f"{(called & ~truth).sum():.2f}" in tiles, "per scan, of which there is one"
    (headline,) = page.all("p", **{"class": "headline"})
    assert f"finds {(called & truth).sum()} of {truth.sum()} nodule candidates" in headline["text"]
    assert any("2 (best epoch)" in dl["text"] for dl in page.all("dl", **{"class": "facts"}))


def test_the_worst_errors_have_pictures(page, reported_run):
    table = pd.read_csv(reported_run / "predictions" / "val.csv", dtype={"seriesuid": str})
    wrong = table[(table["class"] == 1) != (table["probability"] > 0.5)]
    missed = wrong[wrong["class"] == 1].sort_values("probability").head(CASES)
    alarms = wrong[wrong["class"] == 0].sort_values("probability", ascending=False).head(CASES)
    cases = page.all("article")
    assert len(cases) == len(missed) + len(alarms)
    assert len(alarms) == CASES
    for case, expected in zip(cases, pd.concat([missed, alarms]).itertuples(), strict=True):
        text = case["text"]
        assert f"probability {expected.probability:#.4g} loss {show(expected.loss)}" in text
        assert f"position {expected.coordX:.1f}, {expected.coordY:.1f}, {expected.coordZ:.1f} mm" in text
        nodules = np.array([[10.0, -5.0, 20.0], [-20.0, 0.0, 35.0]])
        point = np.array([expected.coordX, expected.coordY, expected.coordZ])
        nearest = np.linalg.norm(nodules - point, axis=1).min()
        assert f"nearest nodule {nearest:.1f} mm away" in text
        voxel = np.round((point - (-44.25, -44.25, 0.75)) / 1.5).astype(int)[::-1]
        assert f"voxel z, y, x {', '.join(map(str, voxel))}" in text
        assert "series 1.1" in text
    images = [image for image in page.all("img") if image["alt"].startswith("Candidate")]
    assert len(images) == 3 * len(cases)
    for image in images:
        kind, data = image["src"].split(",", 1)
        assert kind == "data:image/webp;base64"
        assert base64.b64decode(data).startswith(b"RIFF")
        assert re.fullmatch(r"Candidate \d+, (axial|coronal|sagittal) plane", image["alt"])
    assert len(page.all("svg", **{"class": "outline"})) >= 3 * len(missed), "missed nodules lie on an annotation"


def test_the_page_is_self_contained(page, html, reported_run):
    for element in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if name in element:
                assert element[name].startswith(("data:image/webp;base64,", "data:image/svg+xml;base64,", "#")), element
        assert element["tag"] not in ("link", "iframe", "object", "embed")
    assert not re.findall(r"@import|url\((?!#)", html)
    (policy,) = (e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert not [name for name in reported_run.iterdir() if name.suffix == ".tmp"]


@pytest.mark.parametrize(("listed", "scans"), [(False, 2), (True, 1)])
def test_froc_counts_scans_without_candidates_but_not_training_scans_of_which_none_was_drawn(
    report, dataset, listed, scans
):
    other = dataset / "subset0" / "1.3.mhd"  # of the validated subset, and not in predictions/trn.csv
    other.write_bytes(other.with_name("1.1.mhd").read_bytes())
    if listed:
        with (dataset / "candidates.csv").open("a") as file:
            file.write("1.3,0,0,30,0\n")
    assert any(f"2 nodules in {scans} scans," in element["text"] for element in report().elements)


def test_accessibility(page):
    assert page.disorder == []
    assert page.all("html")[0]["lang"] == "en"
    ids = [element["id"] for element in page.elements if "id" in element]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        if "aria-labelledby" in element:
            assert element["aria-labelledby"] in ids
        if element.get("href", "").startswith("#") and element["tag"] == "a":
            assert element["href"][1:] in ids
    levels = [int(element["tag"][1]) for element in page.elements if re.fullmatch(r"h\d", element["tag"])]
    assert levels[0] == 1
    assert max(np.diff(levels)) == 1, "no level of headings is skipped"
    for header in page.all("th"):
        assert (header["scope"], header["aria-sort"]) == ("col", "none")
    assert len(page.all("table")) == 1
    assert all(svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    charts = page.all("figure", **{"class": "chart"})
    assert len(charts) == 7
    assert len(page.all("main")) == len(page.all("nav")) == len(page.all("h1")) == 1


def test_names_are_escaped(page, reported_run):
    assert reported_run.name == "a run <1>"
    assert page.all("h1")[0]["text"] == "a run <1>"


def test_without_ct_and_without_dataset(report, run_folder, dataset):
    def pictures():
        return [image for image in page.all("img") if image["alt"].startswith("Candidate")]

    (dataset / "subset0" / "1.1.raw").unlink()
    page = report()
    assert not pictures()
    assert len([case for case in page.all("article") if "the CT is missing or damaged" in case["text"]]) > CASES
    dataset.rename(dataset.with_name("gone"))
    page = report()
    (notes,) = page.all("ul", **{"class": "notes"})
    assert "The dataset is missing" in notes["text"]
    assert not pictures()
    assert "CPM" not in page.tiles()
    assert len(page.all("figure", **{"class": "chart"})) == 6
    assert "CPM" in report(f"--dataset-dir={dataset.with_name('gone')}").tiles()


def test_missed_nodules_and_shared_scans_are_reported(report, run_folder):
    path = run_folder / "predictions" / "val.csv"
    table = pd.read_csv(path, dtype={"seriesuid": str})
    table.assign(probability=0.001).to_csv(path, index=False)
    table.to_csv(run_folder / "predictions" / "trn.csv", index=False)
    page = report()
    (headline,) = page.all("p", **{"class": "headline"})
    assert "finds 0 of 10 nodule candidates" in headline["text"]
    assert "is correct for 93.75% of all candidates" in headline["text"]
    (notes,) = page.all("ul", **{"class": "notes"})
    assert "1 of 1 validation scans are also training scans" in notes["text"]
    (alarms,) = page.all("section", id="false-positives")
    assert alarms["text"] == "False positives None."


@pytest.mark.parametrize("kept", [0, 1])
def test_one_class_and_one_epoch(report, run_folder, kept):
    path = run_folder / "predictions" / "val.csv"
    table = pd.read_csv(path, dtype={"seriesuid": str})
    table[table["class"] == kept].to_csv(path, index=False)
    metrics = pd.read_csv(run_folder / "metrics.csv").iloc[:2]
    metrics.assign(roc_auc=np.nan).to_csv(run_folder / "metrics.csv", index=False)
    page = report()
    assert "ROC AUC n/a" in page.tiles()
    assert page.disorder == []


def test_full_size(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    generator = np.random.default_rng(0)
    rows, uids = 55_000, [f"1.2.{number}" for number in range(888)]
    folder, dataset = tmp_path / "run", tmp_path / "luna"
    (folder / "predictions").mkdir(parents=True)
    dataset.mkdir()
    table = pd.DataFrame({"row": np.arange(rows), "seriesuid": generator.choice(uids, size=rows)})
    table[["coordX", "coordY", "coordZ"]] = generator.uniform(-150, 150, size=(rows, 3))
    table["class"] = (np.arange(rows) < 140).astype(int)
    table["diameter_mm"] = np.where(table["class"] == 1, generator.uniform(3, 30, size=rows), 0)
    table["probability"] = np.where(table["class"] == 1, generator.beta(5, 2, rows), generator.beta(1, 8, rows))
    table["loss"] = -np.log(np.where(table["class"] == 1, table["probability"], 1 - table["probability"]))
    table.to_csv(folder / "predictions" / "val.csv", index=False)
    table.to_csv(dataset / "candidates.csv", index=False)
    table.assign(seriesuid="9").to_csv(folder / "predictions" / "trn.csv", index=False)
    (folder / "config.yaml").write_text("fold: 0")
    columns = ["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"]
    table.loc[:139, columns].to_csv(dataset / "annotations.csv", index=False)
    epochs = pd.DataFrame({"epoch": np.repeat(np.arange(1, 101), 2), "split": ["trn", "val"] * 100})
    epochs.assign(**{"loss/all": generator.random(200)}).to_csv(folder / "metrics.csv", index=False)
    start = time.perf_counter()
    LunaReportApp([folder, f"--dataset-dir={dataset}"]).main()
    assert time.perf_counter() - start < 60
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("article")) == 2 * CASES
    assert (folder / "report.html").stat().st_size < 20e6


@pytest.mark.parametrize("threshold", ["50", "nan", "-0.1"])
def test_a_threshold_is_a_probability(run_folder, capsys, threshold):
    assert run_app(LunaReportApp, [run_folder, f"--threshold={threshold}"]) == 1
    assert "is not a probability from 0 to 1" in capsys.readouterr().err


def test_unwritable_output_is_one_line(run_folder, capsys):
    assert run_app(LunaReportApp, [run_folder, f"--output={run_folder}/metrics.csv/report.html"]) == 1
    error = capsys.readouterr().err
    assert "report.html: cannot write to the folder" in error
    assert error.count("\n") == 1
    with pytest.raises(LunaError, match=r"nowhere/metrics\.csv: No such file or directory"):
        LunaReportApp([run_folder / "nowhere"]).main()
