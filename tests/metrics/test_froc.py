"""LUNA16's evaluation against the official script's numbers, and against its rules written out plainly."""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from luna_monai.data.tables import COORDINATES
from luna_monai.files import write_json
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, FrocResult, evaluate_froc, evaluated_scans, match_findings
from luna_monai.tables import read_table

FINDING = [*COORDINATES, "diameter_mm"]


def table(rows, last):
    return pd.DataFrame(rows, columns=["seriesuid", *COORDINATES, last])


def of(result, *names):
    return tuple(result.counts[name] for name in names)


def reference(submission, annotations, excluded, seriesuids):
    """The rules, one candidate and one finding at a time."""
    counts = dict.fromkeys(("tp", "fp", "fn", "excluded", "double", "candidates"), 0)
    scores, labels = [], []
    for uid in seriesuids:
        candidates = [row for row in submission.itertuples() if row.seriesuid == uid]
        if len(candidates) > 100:
            limit = sorted((row.probability for row in candidates), reverse=True)[100]
            candidates = [row for row in candidates if row.probability > limit][:100]
        counts["candidates"] += len(candidates)
        unclaimed = set(range(len(candidates)))
        for is_nodule, findings in ((True, annotations), (False, excluded)):
            for finding in findings.itertuples():
                if finding.seriesuid != uid:
                    continue
                radius = (10.0 if finding.diameter_mm < 0 else finding.diameter_mm) / 2
                matches = []
                for index, row in enumerate(candidates):
                    squared = (
                        (row.coordX - finding.coordX) ** 2
                        + (row.coordY - finding.coordY) ** 2
                        + (row.coordZ - finding.coordZ) ** 2
                    )
                    if squared < radius**2:
                        matches.append(index)
                if is_nodule:
                    unclaimed -= set(matches)
                    counts["double"] += max(len(matches) - 1, 0)
                    counts["tp" if matches else "fn"] += 1
                    if matches:
                        scores.append(max(candidates[index].probability for index in matches))
                        labels.append(1)
                else:
                    counts["excluded"] += len(unclaimed & set(matches))
                    unclaimed -= set(matches)
        counts["fp"] += len(unclaimed)
        scores += [candidates[index].probability for index in unclaimed]
        labels += [0] * len(unclaimed)
    nodules = counts["tp"] + counts["fn"]
    if counts["tp"] and counts["fp"]:
        fpr, tpr, _ = roc_curve(labels, scores)
        sensitivity = np.interp(
            FALSE_POSITIVES_PER_SCAN, fpr * counts["fp"] / len(seriesuids), tpr * counts["tp"] / nodules
        )
    else:
        sensitivity = np.full(7, counts["tp"] / nodules if nodules else np.nan)
    return counts, sensitivity


def assert_same(result: FrocResult, counts, sensitivity) -> None:
    assert {
        "tp": result.counts["true_positives"],
        "fp": result.counts["false_positives"],
        "fn": result.counts["false_negatives"],
        "excluded": result.counts["ignored_candidates_on_excluded_findings"],
        "double": result.counts["ignored_double_detections"],
        "candidates": result.counts["total_number_of_candidates"],
    } == counts
    np.testing.assert_allclose(result.sensitivity, sensitivity, atol=1e-12)
    np.testing.assert_allclose(result.cpm, np.mean(sensitivity), atol=1e-12)


def assert_official(result: FrocResult, official: dict) -> None:
    for name in ("true_positives", "false_positives", "false_negatives", "total_number_of_nodules"):
        assert result.counts[name] == official[name]
    assert result.counts["total_number_of_candidates"] == official["total_number_of_candidates_after_the_cap"]
    ignored = official["ignored_candidates_on_excluded_nodules"]
    assert result.counts["ignored_candidates_on_excluded_findings"] == ignored
    doubles = official["ignored_candidates_which_were_double_detections_on_a_nodule"]
    assert result.counts["ignored_double_detections"] == doubles
    assert result.sensitivity == pytest.approx(official["sensitivity"], abs=1e-6)
    assert result.cpm == pytest.approx(official["cpm"], abs=1e-6)
    assert result.counts["true_positives"] / result.nodules == pytest.approx(
        official["found_share_of_nodules"], abs=1e-6
    )
    average = official["average_number_of_candidates_per_scan"]
    assert result.to_dict()["average_number_of_candidates_per_scan"] == pytest.approx(average, abs=1e-9)


def test_official_numbers_of_888_scans(shared_data):
    official = json.loads((shared_data / "froc_expected.json").read_text())["deeplung_on_888_scans"]
    tables = shared_data / "luna16_tables"
    submission = read_table(tables / "deeplung_detections.csv", [*COORDINATES, "probability"])
    annotations = read_table(tables / "annotations.csv", FINDING)
    excluded = read_table(tables / "annotations_excluded.csv", FINDING)
    seriesuids = (tables / "seriesuids.csv").read_text().split()

    start = time.process_time()
    result = evaluate_froc(submission, annotations, excluded, seriesuids)
    assert time.process_time() - start < 2
    assert_official(result, official)

    start = time.process_time()
    interval = evaluate_froc(submission, annotations, excluded, seriesuids, bootstrap=1000).interval
    assert time.process_time() - start < 30
    expected = official["bootstrap_1000_unseeded"]
    assert interval is not None
    for name in ("mean", "lower", "upper"):
        assert interval[name].drop("cpm").tolist() == pytest.approx(expected[name], abs=0.012), name
    assert interval.index.tolist() == [*FALSE_POSITIVES_PER_SCAN, "cpm"]
    assert interval.loc["cpm", "lower"] < result.cpm < interval.loc["cpm", "upper"]


def test_official_numbers_of_the_books_probabilities(shared_data, luna16_mini):
    official = json.loads((shared_data / "froc_expected.json").read_text())["book_on_luna16_mini"]
    with np.load(shared_data / "book" / "golden_luna16_mini.npz") as golden:
        submission = pd.DataFrame(golden["center_xyz"], columns=COORDINATES)
        submission["seriesuid"] = golden["seriesuid"]
        submission["probability"] = golden["probabilities"][:, 1]
    seriesuids = sorted(path.stem for path in luna16_mini.glob("subset*/*.mhd"))
    result = evaluate_froc(
        submission,
        read_table(luna16_mini / "annotations.csv", FINDING),
        read_table(luna16_mini / "annotations_excluded.csv", FINDING),
        seriesuids,
    )
    assert_official(result, official)


@pytest.mark.parametrize("seed", range(40))
def test_random_cases_follow_the_rules(seed):
    generator = np.random.default_rng(seed)
    seriesuids = [f"scan{number}" for number in range(generator.integers(1, 6))]

    def findings(size, diameters):
        rows = generator.integers(0, 12, size=(size, 3)) * 1.0
        frame = pd.DataFrame(rows, columns=COORDINATES)
        # Some findings belong to scans that are not evaluated.
        frame.insert(0, "seriesuid", generator.choice([*seriesuids, "other"], size=size))
        frame["diameter_mm"] = generator.choice(diameters, size=size)
        return frame

    annotations = findings(generator.integers(1, 8), [3.0, 4.0, 6.0, 8.0])
    annotations.loc[0, "seriesuid"] = seriesuids[0]
    excluded = findings(generator.integers(0, 8), [-1.0, 4.0, 0.0])
    size = int(generator.choice([0, 5, 60, 400]))
    submission = findings(size, [0.0]).drop(columns="diameter_mm").query("seriesuid != 'other'")
    # Whole coordinates and a few probabilities give distances of exactly a radius, and ties, also at the cap.
    submission["probability"] = generator.choice(np.round(np.linspace(0, 1, 30), 2), size=len(submission))

    result = evaluate_froc(submission, annotations, excluded, seriesuids)
    assert_same(result, *reference(submission, annotations, excluded, seriesuids))


def test_cap_keeps_only_what_is_strictly_above_the_101st():
    positions = np.arange(150.0) * 100
    probability = np.repeat([0.9, 0.5, 0.1], [60, 60, 30])
    submission = pd.DataFrame({"seriesuid": "a", "coordX": positions, "coordY": 0.0, "coordZ": 0.0})
    submission["probability"] = probability
    nodule = table([("a", positions[70], 0.0, 0.0, 5.0)], "diameter_mm")
    result = evaluate_froc(submission, nodule, None, ["a"])
    assert of(result, "total_number_of_candidates", "true_positives", "false_positives") == (60, 0, 60)
    # A hundred candidates are within the cap, whatever their ties.
    result = evaluate_froc(submission.iloc[:100], nodule, None, ["a"])
    assert of(result, "total_number_of_candidates", "true_positives", "false_positives") == (100, 1, 99)


def test_nodule_outranks_excluded_finding_and_scans_without_candidates_count():
    submission = table([("a", 0, 0, 0, 0.4), ("a", 1, 0, 0, 0.7), ("a", 50, 0, 0, 0.9)], "probability")
    nodule = table([("a", 0, 0, 0, 6.0), ("b", 0, 0, 0, 6.0)], "diameter_mm")
    excluded = table([("a", 0, 0, 0, -1.0)], "diameter_mm")
    result = evaluate_froc(submission, nodule, excluded, ["a", "b", "c", "d"])
    assert of(result, "true_positives", "false_negatives", "false_positives") == (1, 1, 1)
    assert of(result, "ignored_candidates_on_excluded_findings", "ignored_double_detections") == (0, 1)
    assert result.sensitivity.tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    matches = match_findings(submission, nodule, excluded, ["a", "b", "c", "d"])
    assert matches.nodules["probability"].fillna(-1).tolist() == [0.7, -1.0]
    assert matches.candidates["outcome"].tolist() == ["hit", "hit", "false_positive"]


def test_distance_of_exactly_the_radius_is_a_miss():
    nodule = table([("a", 0, 0, 0, 6.0)], "diameter_mm")
    outcomes = match_findings(
        table([("a", 3, 0, 0, 0.5), ("a", np.nextafter(3, 0), 0, 0, 0.5)], "probability"), nodule, None, ["a"]
    ).candidates["outcome"]
    assert outcomes.tolist() == ["false_positive", "hit"]


def test_curve_passes_through_the_interpolated_sensitivities():
    generator = np.random.default_rng(0)
    submission = pd.DataFrame(generator.uniform(0, 500, size=(3000, 3)), columns=COORDINATES)
    submission.insert(0, "seriesuid", generator.choice(["a", "b", "c", "d"], size=3000))
    submission["probability"] = generator.beta(1, 5, size=3000).round(3)
    nodules = submission.iloc[:40].drop(columns="probability").assign(diameter_mm=8.0)
    result = evaluate_froc(submission, nodules, None, ["a", "b", "c", "d"])
    on_curve = np.interp(
        FALSE_POSITIVES_PER_SCAN, result.curve["false_positives_per_scan"], result.curve["sensitivity"]
    )
    np.testing.assert_allclose(on_curve, result.sensitivity, atol=1e-12)
    assert (np.diff(result.curve["false_positives_per_scan"]) >= 0).all()


def test_undefined_and_extreme_cases_are_values_not_crashes(tmp_path):
    candidates = table([("a", 0, 0, 0, 0.5)], "probability")
    none = table([], "diameter_mm")
    nodule = table([("a", 0, 0, 0, 6.0)], "diameter_mm")
    no_nodule = evaluate_froc(candidates, none, none, ["a"], bootstrap=10)
    assert np.isnan(no_nodule.cpm)
    write_json(tmp_path / "froc.json", no_nodule.to_dict())
    content = json.loads((tmp_path / "froc.json").read_text())
    assert content["cpm"] is content["bootstrap"]["cpm_lower"] is content["curve"]["threshold"][0] is None
    assert evaluate_froc(candidates, nodule, None, ["a"]).sensitivity.tolist() == [1.0] * 7, "no false positive"
    nothing = evaluate_froc(candidates.iloc[:0], nodule, None, ["a"], bootstrap=10)
    assert (nothing.cpm, nothing.counts["false_negatives"]) == (0.0, 1)
    assert evaluate_froc(candidates, nodule, None, ["a", "a"]).scans == 1


def test_bootstrap_repeats_itself_and_narrows_around_certainty():
    submission = table([(f"s{n}", 0, 0, 0, 0.5 + n / 100) for n in range(20)], "probability")
    nodules = submission.drop(columns="probability").assign(diameter_mm=6.0)
    uids = [f"s{n}" for n in range(20)]
    certain = evaluate_froc(submission, nodules, None, uids, bootstrap=50).interval
    assert certain["lower"].min() == certain["upper"].max() == 1.0
    half = nodules.copy()
    half.loc[::2, "coordX"] = 99.0
    first, again = (evaluate_froc(submission, half, None, uids, bootstrap=50).interval for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert first.loc["cpm", "lower"] < first.loc["cpm", "mean"] < first.loc["cpm", "upper"]


def test_scans_without_candidates_are_evaluated_with_their_subset():
    scans = {uid: Path(f"subset{subset}") / f"{uid}.mhd" for uid, subset in (("a", 0), ("b", 0), ("c", 1), ("d", 0))}
    # Validated on subset 0: b has no candidate. d is trained on, as in the book's split.
    assert evaluated_scans(["a", "a"], ["d", "c"], scans) == ["a", "b"]
    # With a table of patients, c is validated with subset 0, but not the scans without candidates of its subset.
    scans |= {uid: Path("subset1") / f"{uid}.mhd" for uid in "efgh"}
    assert evaluated_scans(["a", "c"], "aceg", scans) == ["a", "b", "c", "d"]
    assert evaluated_scans(["e", "g"], "aceg", scans) == ["e", "f", "g", "h"]
    assert evaluated_scans(["gone"], [], scans) == ["gone"], "its CT is not on disk"
