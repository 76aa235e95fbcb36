"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import yaml

from luna_monai.errors import LunaError
from luna_monai.metrics import calibration as calibrate
from luna_monai.metrics.froc import CONFIDENCE, FALSE_POSITIVES_PER_SCAN, FrocResult, rate_name
from luna_monai.metrics.operating_points import operating_points
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports import layout, results
from luna_monai.reports.cases import error_cases, mistakes_table
from luna_monai.reports.charts import calibration_charts, cpm_sentence, ranking_charts, training_charts
from luna_monai.reports.layout import Table, render_page
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
        cases: at most that number of false negatives, and of false positives, are shown in pictures.
        bootstrap: bootstrap samples of scans for the FROC interval; 0 for none.
        seed: of the bootstrap.

    Returns:
        An HTML document without any reference to something outside it. Where the network's output is NaN it shows
        that, the training and the configuration alone.
    """
    validation = run.validation
    epoch = results.best_epoch(run.metrics, validation)
    undefined = int(validation["probability"].isna().sum())
    values: dict[str, Any] = {
        "name": run.folder.resolve().name,
        "facts": _run_facts(run, epoch),
        "undefined": undefined,
        "threshold": threshold,
        "training": training_charts(run.metrics, epoch),
        "epochs": _epoch_table(run.metrics),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
    }
    if undefined:
        values |= {"verdict": _diverged(run, undefined), "bad": True, "tiles": [], "notes": run.notes}
    else:
        values |= _evaluation(run, threshold, cases, results.run_froc(run, bootstrap, seed))
    return render_page("report.html", **values)


def _evaluation(run: Run, threshold: float, cases: int, froc: FrocResult | None) -> dict[str, Any]:
    validation = run.validation
    is_nodule = validation["class"].to_numpy()
    both = is_nodule.any() and not is_nodule.all()
    froc = froc if froc is not None and froc.nodules else None
    reliability = calibrate.reliability(validation["probability"], is_nodule)
    metrics = per_class_metrics(is_nodule, validation["probability"], validation["loss"], threshold)
    scans = validation["seriesuid"].nunique()
    missed, alarms = results.worst_candidates(validation, threshold, cases)
    mistakes = pd.concat(results.worst_candidates(validation, threshold, MISTAKES_IN_TABLE))
    return {
        "notes": [*run.notes, *_split_notes(run, froc)],
        "verdict": _verdict(metrics, scans),
        "bad": metrics["count/pos"] > 0 and metrics["correct_count/pos"] == 0,
        "tiles": _tiles(metrics, scans, froc, reliability),
        "ranking": ranking_charts(validation, froc, threshold),
        "froc_table": None if froc is None else _froc_table(froc),
        "calibration": calibration_charts(validation, reliability, threshold),
        "calibration_text": _calibration_text(validation, reliability),
        "operating": _operating_table(validation) if both else None,
        "diameters": _diameter_tables(validation, froc, threshold),
        "subsets": _subset_table(run, threshold),
        "missed": error_cases(missed, run, "Missed nodule"),
        "missed_count": metrics["count/pos"] - metrics["correct_count/pos"],
        "alarms": error_cases(alarms, run, "False positive"),
        "alarms_count": metrics["count/neg"] - metrics["correct_count/neg"],
        "mistakes": mistakes_table(mistakes, run),
    }


def _diverged(run: Run, undefined: int) -> str:
    losses = run.metrics.reindex(columns=["epoch", "loss/all"])
    first = losses.loc[~np.isfinite(losses["loss/all"]), "epoch"].min()
    since = "" if pd.isna(first) else f" The loss is undefined from epoch {first} on."
    return (
        f"The network's output is NaN for {undefined:,} of {len(run.validation):,} validation candidates: training "
        f"diverged, and there is nothing to evaluate.{since} Train again with a lower learning rate."
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
    notes, validated = [], run.validation["seriesuid"].drop_duplicates()
    shared = 0 if run.training is None else int(validated.isin(run.training["seriesuid"]).sum())
    if shared:
        notes.append(
            f"{shared:,} of {len(validated):,} validation scans are also trained on, as in the book's split: the "
            "results are better than they would be on new patients."
        )
    if shared and froc is not None:
        notes.append(
            "FROC counts all annotated nodules of the validation scans, also those whose candidates are in the "
            "training part, so its sensitivities can be too low."
        )
    missing = (~validated.isin(list(run.scans))).sum()
    if run.annotations is not None and missing:
        notes.append(f"The CTs of {missing:,} of {len(validated):,} validation scans are not on disk.")
    return notes


def _verdict(metrics: dict[str, float], scans: int) -> str:
    nodules, others = metrics["count/pos"], metrics["count/neg"]
    found, false_alarms = metrics["correct_count/pos"], others - metrics["correct_count/neg"]
    if not nodules:
        return f"No nodule is among the {others:,} validation candidates."
    sentence = (
        f"The model finds {found:,} of {nodules:,} nodule candidates ({layout.format_percent(found / nodules)}), and "
        f"takes {false_alarms:,} of {others:,} others for nodules: {false_alarms / scans:.2f} per scan."
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
    if froc is not None:
        cpm = None if froc.interval is None else froc.interval.cpm
        text = "LUNA16's score" if cpm is None else f"{cpm['lower']:.3f} to {cpm['upper']:.3f}"
        tiles.append(("CPM", layout.format_number(froc.cpm, 3), text))
    error = layout.format_number(reliability["expected_calibration_error"])
    return [*tiles, ("Calibration error", error, "0 is calibrated")]


def _epoch_table(metrics: pd.DataFrame) -> Table:
    parts = metrics.replace({"split": {"trn": "training", "val": "validation"}})
    columns: dict[str, Any] = {"epoch": ("epoch", layout.count), "split": ("part", layout.text)}
    for name, (title, digits) in _EPOCH_COLUMNS.items():
        if name in metrics:
            columns[name] = (title, lambda value, digits=digits: layout.number(value, digits))
    return layout.table("Metrics by epoch", parts, columns)


def _froc_table(froc: FrocResult) -> Table:
    frame = pd.DataFrame({"rate": FALSE_POSITIVES_PER_SCAN, "sensitivity": froc.sensitivity})
    frame["threshold"] = frame["rate"].map(froc.threshold_at)
    columns: dict[str, Any] = {
        "rate": ("false positives per scan", lambda rate: layout.number(rate, 3)),
        "sensitivity": ("sensitivity", layout.percent),
    }
    if froc.interval is not None:
        points = froc.interval.luna16_points
        frame["interval"] = list(zip(points["lower"], points["upper"], strict=True))
        columns["interval"] = (f"{CONFIDENCE:.0%} interval".replace("%", " %"), layout.interval)
    columns["threshold"] = ("threshold", layout.probability)
    note = (
        f"{cpm_sentence(froc)} {froc.counts['true_positives']:,} of {froc.nodules:,} nodules have a candidate at all; "
        f"{froc.counts['false_positives']:,} candidates hit nothing, "
        f"{froc.counts['ignored_candidates_on_excluded_findings']:,} lie on excluded findings and "
        f"{froc.counts['ignored_double_detections']:,} on a nodule already hit."
    )
    return layout.table("LUNA16's sensitivities", frame, columns, note)


def _calibration_text(validation: pd.DataFrame, before: dict[str, Any]) -> str:
    is_nodule = validation["class"].to_numpy()
    if not is_nodule.any() or is_nodule.all():
        return "With a single class there is nothing to calibrate on."
    log_odds = calibrate.log_odds_of_probability(validation["probability"])
    fit = calibrate.fit_calibration(log_odds, is_nodule)
    text = (
        f"The best fit is a temperature of {fit.temperature:.3g} and an intercept of {fit.intercept:+.3g} in log-odds; "
        "neither changes any ranking. "
    )
    try:
        calibrated, folds = calibrate.cross_fit_calibration(log_odds, is_nodule, validation["seriesuid"])
    except LunaError:
        return text + "Its effect on other scans cannot be measured, because only one scan has nodules."
    after = calibrate.reliability(calibrated, is_nodule)
    error, brier = (
        f"{before[name]:.4f} to {after[name]:.4f}" for name in ("expected_calibration_error", "brier_score")
    )
    return text + (
        f"Fitted on some scans and evaluated on others, in {folds} parts, it changes the expected calibration error "
        f"from {error} and the Brier score from {brier}."
    )


def _operating_table(validation: pd.DataFrame) -> Table:
    points = operating_points(validation["probability"], validation["class"], validation["seriesuid"].nunique())
    names = {"sensitivity": lambda share: f"sensitivity {100 * share:g} %", "false_positives_per_scan": _wanted_rate}
    points["name"] = [names[kind](value) for kind, value in zip(points["kind"], points["wanted"], strict=True)]
    columns: dict[str, Any] = {
        "name": ("wanted", layout.text),
        "threshold": ("threshold", layout.probability),
        "sensitivity": ("sensitivity", layout.percent),
        "false_positives_per_scan": ("false positives per scan", lambda rate: layout.number(rate, 2)),
        "precision": ("precision", layout.percent),
    }
    note = "Chosen on these very candidates, each counted singly; on new scans expect somewhat less."
    return layout.table("Thresholds for what is wanted", points, columns, note)


def _wanted_rate(rate: float) -> str:
    return f"{rate_name(rate)} false positive{'s' * (rate > 1)} per scan"


def _diameter_tables(validation: pd.DataFrame, froc: FrocResult | None, threshold: float) -> list[Table]:
    group: dict[str, Any] = {"group": ("diameter", lambda group: layout.Cell(group[0], group[1], is_number=False))}
    found: dict[str, Any] = {
        "sensitivity": ("sensitivity", layout.percent),
        "interval": ("95 % interval", layout.interval),
    }
    tables = []
    if validation["class"].any():
        counts = {name: (name, layout.count) for name in ("candidates", "found")}
        means = {"probability": ("median probability", _three_digits), "loss": ("mean loss", _three_digits)}
        rows = results.candidates_by_diameter(validation, threshold)
        caption = f"Nodule candidates, found above {threshold:g}"
        tables.append(layout.table(caption, rows, group | counts | found | means))
    if froc is not None:
        titles = {"nodules": "nodules", "with_candidate": "with a candidate", "found": f"found above {threshold:g}"}
        counts = {name: (title, layout.count) for name, title in titles.items()}
        at = {f"at_{rate}": (f"found at {rate} per scan", layout.count) for rate in (1, 4)}
        rows = results.nodules_by_diameter(froc, threshold)
        tables.append(layout.table("Annotated nodules of the validation scans", rows, group | counts | found | at))
    return tables


def _three_digits(value: float) -> layout.Cell:
    return layout.number(value, 3)


def _subset_table(run: Run, threshold: float) -> Table | None:
    rows = results.results_by_subset(run, threshold)
    if rows.empty:
        return None
    columns: dict[str, Any] = {
        "part": ("part", layout.text),
        **{name: (name, layout.count) for name in ("subset", "scans", "candidates")},
        "count/pos": ("nodule candidates", layout.count),
        "pr/recall": ("recall", layout.percent),
        "pr/precision": ("precision", layout.percent),
        "correct/neg": ("non-nodules correct", lambda value: layout.percent(value / 100, 2)),
        "roc_auc": ("ROC AUC", layout.number),
        "average_precision": ("average precision", layout.number),
        "loss/all": ("mean loss", layout.number),
    }
    note = "Training counts each time that a candidate was drawn, and the model as it was at that moment."
    return layout.table(f"Results by LUNA16 subset, at {threshold:g}", rows, columns, note)
