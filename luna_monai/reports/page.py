"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import yaml

from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import (
    cross_fit_calibration,
    fit_calibration,
    log_odds_of_probability,
)
from luna_monai.metrics.calibration import reliability as compute_reliability
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, FrocResult
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports import layout
from luna_monai.reports.cases import error_cases, mistakes_table
from luna_monai.reports.charts import calibration_charts, cpm_sentence, ranking_charts, training_charts
from luna_monai.reports.environment import render_page
from luna_monai.reports.layout import Table
from luna_monai.reports.results import (
    best_epoch,
    candidates_by_diameter,
    group_name,
    nodules_by_diameter,
    records,
    results_by_subset,
    run_froc,
    wanted_points,
    worst_candidates,
)
from luna_monai.reports.run import Run

#: Columns of metrics.csv that the table of epochs shows, as far as they are there, and their digits.
_EPOCH_COLUMNS = {
    "samples": ("samples trained", 0),
    "loss/all": ("loss", 4),
    "loss/neg": ("loss, non-nodules", 4),
    "loss/pos": ("loss, nodules", 4),
    "correct/neg": ("correct, non-nodules, %", 2),
    "correct/pos": ("correct, nodules, %", 2),
    "pr/precision": ("precision", 3),
    "pr/recall": ("recall", 3),
    "pr/f1_score": ("F1", 3),
    "roc_auc": ("ROC AUC", 4),
    "average_precision": ("average precision", 4),
    "cpm": ("CPM", 4),
}
MISTAKES_IN_TABLE = 100


def build_report(run: Run, *, threshold: float = 0.5, cases: int = 12, bootstrap: int = 1000, seed: int = 0) -> str:
    """Build the report of a run.

    Args:
        run: the run.
        threshold: a candidate is called a nodule when its probability is strictly above it.
        cases: at most so many false negatives, and so many false positives, are shown in pictures.
        bootstrap: bootstrap samples of scans for the FROC interval; 0 for none.
        seed: of the bootstrap.

    Returns:
        An HTML document without any reference to something outside it.
    """
    validation = run.validation
    is_nodule, probability = validation["class"].to_numpy(), validation["probability"].to_numpy()
    froc = run_froc(run, bootstrap, seed)
    epoch = best_epoch(run.metrics, validation)
    reliability = compute_reliability(probability, is_nodule)
    metrics = per_class_metrics(is_nodule, probability, validation["loss"], threshold)
    missed, alarms = worst_candidates(validation, threshold, cases)
    many_missed, many_alarms = worst_candidates(validation, threshold, MISTAKES_IN_TABLE)
    return render_page(
        "report.html",
        name=run.folder.resolve().name,
        facts=_run_facts(run, epoch),
        notes=[*run.notes, *_split_notes(run, froc)],
        verdict=_verdict(metrics, validation["seriesuid"].nunique()),
        trap=metrics["count/pos"] > 0 and metrics["correct_count/pos"] == 0,
        tiles=_tiles(metrics, validation["seriesuid"].nunique(), froc, reliability),
        threshold=threshold,
        training=training_charts(run.metrics, epoch),
        epochs=_epoch_table(run.metrics),
        ranking=ranking_charts(validation, froc, threshold),
        froc_table=None if froc is None or not froc.nodules else _froc_table(froc),
        calibration=calibration_charts(validation, reliability, threshold),
        calibration_text=_calibration_text(validation, reliability),
        operating=_operating_table(validation) if is_nodule.any() and not is_nodule.all() else None,
        diameters=_diameter_tables(validation, froc, threshold),
        subsets=_subset_table(run, threshold),
        missed=error_cases(missed, run, "Missed nodule"),
        missed_count=metrics["count/pos"] - metrics["correct_count/pos"],
        alarms=error_cases(alarms, run, "False positive"),
        alarms_count=metrics["count/neg"] - metrics["correct_count/neg"],
        mistakes=mistakes_table(pd.concat([many_missed, many_alarms]), run),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
    )


def _run_facts(run: Run, epoch: int | None) -> list[tuple[str, str]]:
    scans = run.validation["seriesuid"].nunique()
    facts = [
        ("validation", f"{len(run.validation):,} candidates in {scans:,} scan{'s' * (scans != 1)}"),
        ("epochs", str(run.metrics["epoch"].max()) if len(run.metrics) else "none"),
    ]
    if epoch is not None:
        facts.append(("shown here", f"epoch {epoch}, the best"))
    if isinstance(run.config.get("fold"), int):
        facts.append(("fold", str(run.config["fold"])))
    return facts


def _split_notes(run: Run, froc: FrocResult | None) -> list[str]:
    notes = []
    if run.training is not None:
        shared = set(run.training["seriesuid"]) & set(run.validation["seriesuid"])
        if shared:
            notes.append(
                f"{len(shared):,} of {run.validation['seriesuid'].nunique():,} validation scans are also trained on, "
                "as in the book's split: the results are better than they would be on new patients."
            )
            if froc is not None:
                notes.append(
                    "FROC counts all annotated nodules of the validation scans, also those whose candidates are in "
                    "the training part, so its sensitivities can be too low."
                )
    pictured = run.validation["seriesuid"].drop_duplicates()
    missing = (~pictured.isin(list(run.scans))).sum()
    if run.annotations is not None and missing:
        notes.append(f"The CTs of {missing:,} of {len(pictured):,} validation scans are not on disk.")
    return notes


def _verdict(metrics: dict[str, float], scans: int) -> str:
    nodules, others = metrics["count/pos"], metrics["count/neg"]
    found, false_alarms = metrics["correct_count/pos"], others - metrics["correct_count/neg"]
    if not nodules:
        return f"No nodule is among the {layout.format_count(others)} validation candidates."
    sentence = (
        f"The model finds {layout.format_count(found)} of {layout.format_count(nodules)} nodule candidates "
        f"({layout.format_percent(found / nodules)}), and takes {layout.format_count(false_alarms)} of "
        f"{layout.format_count(others)} others for nodules: {false_alarms / scans:.2f} per scan."
    )
    if not found:
        share = layout.format_percent(others / (nodules + others), 2)
        sentence += f" To call every candidate a non-nodule would be right for {share} of them."
    return sentence


def _tiles(
    metrics: dict[str, float], scans: int, froc: FrocResult | None, reliability: dict[str, Any]
) -> list[tuple[str, str, str]]:
    false_alarms = metrics["count/neg"] - metrics["correct_count/neg"]
    tiles = [
        ("Recall", layout.format_percent(metrics["pr/recall"]), "nodule candidates found"),
        ("Precision", layout.format_percent(metrics["pr/precision"]), "of those called nodules"),
        ("False positives", f"{false_alarms / scans:.2f}", "per scan"),
        ("ROC AUC", layout.format_number(metrics["roc_auc"]), "1 is perfect, 0.5 is chance"),
        ("Average precision", layout.format_number(metrics["average_precision"]), "area under the PR curve"),
    ]
    if froc is not None and froc.nodules:
        text = "LUNA16's score"
        if froc.interval is not None:
            lower, upper = (
                layout.format_number(x, 3) for x in (froc.interval.cpm["lower"], froc.interval.cpm["upper"])
            )
            text = f"{lower} to {upper}"
        tiles.append(("CPM", layout.format_number(froc.cpm, 3), text))
    tiles.append(
        ("Calibration error", layout.format_number(reliability["expected_calibration_error"]), "0 is calibrated")
    )
    return tiles


def _epoch_table(metrics: pd.DataFrame) -> Table:
    columns = {name: label for name, label in _EPOCH_COLUMNS.items() if name in metrics}
    rows = []
    for _, row in metrics.iterrows():
        part = "training" if row["split"] == "trn" else "validation"
        cells = [layout.count(row["epoch"]), layout.text(part)]
        for name, (_, digits) in columns.items():
            cells.append(layout.number(float(row[name]), digits))
        rows.append(cells)
    return Table("Metrics by epoch", ["epoch", "part", *(label for label, _ in columns.values())], rows)


def _froc_table(froc: FrocResult) -> Table:
    bootstrap = froc.to_dict().get("bootstrap")
    columns = ["false positives per scan", "sensitivity", "threshold"]
    if bootstrap is not None:
        columns.insert(2, f"{layout.format_percent(bootstrap['confidence'], 0)} interval")
    rows = []
    for index, rate in enumerate(FALSE_POSITIVES_PER_SCAN):
        threshold = froc.threshold_at(rate)
        cells = [
            layout.number(rate, 3),
            layout.percent(froc.sensitivity[index]),
            layout.Cell(layout.format_probability(threshold) if math.isfinite(threshold) else "none", threshold),
        ]
        if bootstrap is not None:
            lower, upper = bootstrap["sensitivity_lower"][index], bootstrap["sensitivity_upper"][index]
            cells.insert(2, layout.interval(lower, upper))
        rows.append(cells)
    note = (
        f"{cpm_sentence(froc)} {froc.counts['true_positives']:,} of {froc.nodules:,} nodules have a candidate at all; "
        f"{froc.counts['false_positives']:,} candidates hit nothing, "
        f"{froc.counts['ignored_candidates_on_excluded_findings']:,} lie on excluded findings and "
        f"{froc.counts['ignored_double_detections']:,} on a nodule already hit."
    )
    return Table("LUNA16's sensitivities", columns, rows, note)


def _calibration_text(validation: pd.DataFrame, before: dict[str, Any]) -> str:
    is_nodule = validation["class"].to_numpy()
    if not is_nodule.any() or is_nodule.all():
        return "With a single class there is nothing to calibrate on."
    log_odds = log_odds_of_probability(validation["probability"])
    calibration = fit_calibration(log_odds, is_nodule)
    text = (
        f"The best fit is a temperature of {calibration.temperature:.3g} and an intercept of "
        f"{calibration.intercept:+.3g} in log-odds; neither changes any ranking. "
    )
    try:
        calibrated, folds = cross_fit_calibration(log_odds, is_nodule, validation["seriesuid"])
    except LunaError:
        return text + "What it is worth can't be judged, as only one scan has nodules."
    after = compute_reliability(calibrated, is_nodule)
    return text + (
        f"Fitted on some scans and judged on others, in {folds} parts, it takes the expected calibration error from "
        f"{before['expected_calibration_error']:.4f} to {after['expected_calibration_error']:.4f} and the Brier score "
        f"from {before['brier_score']:.4f} to {after['brier_score']:.4f}."
    )


def _operating_table(validation: pd.DataFrame) -> Table:
    rows = [
        [
            layout.text(wanted),
            layout.Cell(layout.format_probability(point["threshold"]), point["threshold"]),
            layout.percent(point["sensitivity"]),
            layout.number(point["false_positives_per_scan"], 2),
            layout.percent(point["precision"]),
        ]
        for wanted, point in wanted_points(validation)
    ]
    columns = ["wanted", "threshold", "sensitivity", "false positives per scan", "precision"]
    note = "Chosen on these very candidates, each counted singly; on new scans expect somewhat less."
    return Table("Thresholds for what is wanted", columns, rows, note)


def _diameter_tables(validation: pd.DataFrame, froc: FrocResult | None, threshold: float) -> list[Table]:
    columns = ["diameter", "candidates", "found", "sensitivity", "95 % interval", "median probability", "mean loss"]
    rows = [
        [
            layout.Cell(group_name(row["group"]), row["group"], is_number=False),
            layout.count(row["candidates"]),
            layout.count(row["found"]),
            layout.percent(row["sensitivity"]),
            layout.interval(row["lower"], row["upper"]),
            layout.number(row["probability"], 3),
            layout.number(row["loss"], 3),
        ]
        for row in records(candidates_by_diameter(validation, threshold))
    ]
    tables = [Table(f"Nodule candidates, found above {threshold:g}", columns, rows)] if rows else []
    if froc is not None and froc.nodules:
        columns = ["diameter", "nodules", "with a candidate", f"found above {threshold:g}", "sensitivity"]
        columns += ["95 % interval", "found at 1 per scan", "found at 4 per scan"]
        rows = [
            [
                layout.Cell(group_name(row["group"]), row["group"], is_number=False),
                *(layout.count(row[name]) for name in ("nodules", "with_candidate", "found")),
                layout.percent(row["sensitivity"]),
                layout.interval(row["lower"], row["upper"]),
                *(layout.count(row[name]) for name in ("at_1", "at_4")),
            ]
            for row in records(nodules_by_diameter(froc, threshold))
        ]
        tables.append(Table("Annotated nodules of the validation scans", columns, rows))
    return tables


def _subset_table(run: Run, threshold: float) -> Table | None:
    results = results_by_subset(run, threshold)
    if results.empty:
        return None
    columns = [
        "part",
        "subset",
        "scans",
        "candidates",
        "nodule candidates",
        "recall",
        "precision",
        "non-nodules correct",
    ]
    columns += ["ROC AUC", "average precision", "mean loss"]
    rows: list[Any] = [
        [
            layout.text(row["part"]),
            *(layout.count(row[name]) for name in ("subset", "scans", "candidates", "count/pos")),
            layout.percent(row["pr/recall"]),
            layout.percent(row["pr/precision"]),
            layout.percent(row["correct/neg"] / 100, 2),
            *(layout.number(row[name]) for name in ("roc_auc", "average_precision", "loss/all")),
        ]
        for row in records(results)
    ]
    note = "Training counts each time that a candidate was drawn, and the model as it was at that moment."
    return Table(f"Results by LUNA16 subset, at {threshold:g}", columns, rows, note)
