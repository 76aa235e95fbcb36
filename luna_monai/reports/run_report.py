"""A run as one HTML file that needs nothing else."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup
from matplotlib.figure import Figure

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import wilson_interval
from luna_monai.metrics.froc import CONFIDENCE, FrocResult, evaluate_froc, evaluated_scans
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports import figures
from luna_monai.reports.pages import Case, Chart, Section, Table, render_page, show
from luna_monai.reports.pictures import ball, draw_stacks
from luna_monai.reports.run import Run
from luna_monai.scans.scan import Scan, read_scan

logger = logging.getLogger(__name__)

#: Charts over the epochs and their columns of metrics.csv.
_EPOCH_CHARTS = {
    "Mean cross entropy, by class": ("loss/all", "loss/neg", "loss/pos"),
    "Correct decisions in %, by class": ("correct/all", "correct/neg", "correct/pos"),
    "Ranking": ("cpm", "roc_auc", "average_precision"),
    "Detection at 0.5": ("pr/f1_score", "pr/precision", "pr/recall"),
}
#: Edges of the diameter groups in mm; 6 and 8 mm are the Fleischner Society's limits for follow-up. 0: no annotation.
DIAMETER_EDGES = (0, 4, 6, 8, 10, 15, 20)
_INTERVAL = f"{CONFIDENCE:.0%} interval"
_BOOTSTRAP = 1000
#: False negatives, and false positives, that are shown in pictures.
CASES = 12


def build_report(run: Run, threshold: float = 0.5) -> str:
    """Build the report of a run.

    Args:
        run: the run.
        threshold: a candidate is called a nodule when its probability is strictly above it.

    Returns:
        An HTML document without any reference to something outside it. Where the network's output is NaN it shows
        that, the training and the configuration alone.
    """
    validation, metrics = run.validation, run.metrics
    epoch = best_epoch(metrics, validation)
    undefined = int(validation["probability"].isna().sum())
    summary: dict[str, Any] = {"verdict": _diverged(undefined, run), "bad": True, "tiles": [], "notes": run.notes}
    sections = [Section("Training", charts=_training_charts(metrics, epoch))]
    if not undefined:
        froc = run_froc(run, _BOOTSTRAP)
        summary = _summary(run, threshold, froc)
        missed, alarms = worst_candidates(validation, threshold)
        sections += [
            _ranking(validation, froc, threshold),
            Section("Diameter", tables=[_diameter_table(validation, threshold)]),
            Section("Missed nodules", cases=picture(missed.head(CASES), run)),
            Section("False positives", cases=picture(alarms.head(CASES), run)),
        ]
    facts = {
        "validation": f"{len(validation):,} candidates in {validation['seriesuid'].nunique():,} scans",
        "epochs": show(metrics["epoch"].max()),
        "shown here": "not known" if epoch is None else f"epoch {epoch}, the best",
        "fold": str(run.config.get("fold")),
    }
    return render_page(
        "report.html",
        brand="luna-monai run report",
        name=run.folder.resolve().name,
        facts=facts.items(),
        sections=sections,
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True) if run.config else "",
        **summary,
    )


def best_epoch(metrics: pd.DataFrame, validation: pd.DataFrame) -> int | None:
    """Find the epoch whose predictions were kept by their mean loss; None when no epoch has that loss."""
    rows = metrics[metrics["split"] == "val"].reindex(columns=["epoch", "loss/all"])
    kept = validation["loss"].mean()
    # Tables are written with fewer digits than they are computed with.
    same = rows[np.isclose(rows["loss/all"], kept, rtol=1e-3, atol=1e-9)]
    return None if same.empty else int(same["epoch"].iloc[(same["loss/all"] - kept).abs().argmin()])


def run_froc(run: Run, bootstrap: int) -> FrocResult | None:
    """Evaluate the validation predictions as LUNA16 does; None without annotated nodules."""
    if run.annotations is None:
        return None
    trained: list[str] = [] if run.training is None else run.training["seriesuid"].tolist()
    seriesuids = evaluated_scans(run.validation["seriesuid"], trained, run.scans)
    froc = evaluate_froc(run.validation, run.annotations, run.excluded, seriesuids, bootstrap=bootstrap)
    return froc if froc.nodules else None


def froc_chart(figure: Figure, froc: FrocResult) -> Chart:
    """Describe the FROC curve of a figure."""
    words = (
        f"Of {froc.nodules:,} annotated nodules in {froc.scans:,} scan{'s' * (froc.scans != 1)}, "
        f"{froc.sensitivity[3]:.1%} are found at 1 false positive per scan and {froc.sensitivity[5]:.1%} at 4. "
        f"CPM {froc.cpm:.3f}"
    )
    if froc.interval is not None:
        words += " ({} {lower:.3f} to {upper:.3f})".format(_INTERVAL, **froc.interval.loc["cpm"])
    return _chart(figure, "FROC, by annotated nodule, as LUNA16 computes it", f"{words}.")


def _chart(figure: Figure, title: str, words: str) -> Chart:
    name = "chart-" + "".join(letter for letter in title if letter.isalnum())
    return Chart(title, Markup(figures.to_svg(figure, name)), words)  # matplotlib escapes its text


def _diverged(undefined: int, run: Run) -> str:
    losses = run.metrics.reindex(columns=["epoch", "loss/all"])
    first = losses.loc[~np.isfinite(losses["loss/all"]), "epoch"].min()
    return (
        f"The network's output is NaN for {undefined:,} of {len(run.validation):,} validation candidates: training "
        f"diverged (first epoch with an undefined loss: {show(first)}), and there is nothing to evaluate. Train again "
        "with a lower learning rate."
    )


def _summary(run: Run, threshold: float, froc: FrocResult | None) -> dict[str, Any]:
    """Summarize results in a sentence and in numbers, with notes."""
    validation, notes = run.validation, list(run.notes)
    metrics = per_class_metrics(validation["class"], validation["probability"], validation["loss"], threshold)
    nodules, others, found = (int(metrics[name]) for name in ("count/pos", "count/neg", "correct_count/pos"))
    alarms, scans = others - int(metrics["correct_count/neg"]), validation["seriesuid"].nunique()
    verdict = (
        f"The model finds {found:,} of {nodules:,} nodule candidates, and takes {alarms:,} of {others:,} others for "
        f"nodules: {alarms / scans:.2f} per scan."
    )
    if nodules and not found:
        share = others / (nodules + others)
        verdict += f" To call every candidate a non-nodule would be right for {share:.2%} of them."
    tiles = [
        ("Recall", show(metrics["pr/recall"], ".1%"), f"nodule candidates above {threshold:g}"),
        ("Precision", show(metrics["pr/precision"], ".1%"), f"of candidates above {threshold:g}"),
        ("False positives", f"{alarms / scans:.2f}", "per scan"),
        ("ROC AUC", show(metrics["roc_auc"], ".4f"), "1 is perfect, 0.5 is chance"),
        ("Average precision", show(metrics["average_precision"], ".4f"), "area under the PR curve"),
    ]
    if froc is not None:
        tiles.append(("CPM", f"{froc.cpm:.3f}", "LUNA16's score"))
    validated = validation["seriesuid"].drop_duplicates()
    shared = 0 if run.training is None else int(validated.isin(run.training["seriesuid"]).sum())
    if shared:
        notes.append(
            f"{shared:,} of {len(validated):,} validation scans are also trained on, as in the book's split: the "
            "results are better than they would be on new patients. FROC counts all annotated nodules of these scans, "
            "also those whose candidates are in the training part, so its sensitivities can be too low."
        )
    return {"verdict": verdict, "bad": bool(nodules) and not found, "tiles": tiles, "notes": notes}


def _training_charts(metrics: pd.DataFrame, epoch: int | None) -> list[Chart]:
    charts = []
    rows = metrics[(metrics["split"] == "val") & ((metrics["epoch"] == epoch) | (epoch is None))]
    for title, all_columns in _EPOCH_CHARTS.items():
        columns = [column for column in all_columns if column in metrics]
        if metrics[columns].notna().any(axis=None):
            last = rows.iloc[-1] if len(rows) else dict.fromkeys(columns)
            values = ", ".join(f"{figures.short_name(column)} {show(last[column], '.4g')}" for column in columns)
            words = f"Validation in {'the last' if epoch is None else 'the best'} epoch: {values}."
            charts.append(_chart(figures.epoch_figure(metrics, columns, epoch), title, words))
    return charts


def _ranking(validation: pd.DataFrame, froc: FrocResult | None, threshold: float) -> Section:
    """Show the curves that the data allow; ROC and precision-recall need both classes."""
    charts = []
    is_nodule, probability = validation["class"].to_numpy(), validation["probability"].to_numpy()
    if is_nodule.any() and not is_nodule.all():
        roc, precision_recall = figures.ranking_figures(is_nodule, probability, threshold)
        charts.append(_chart(roc, "ROC, by candidate", "Chance is the diagonal."))
        charts.append(_chart(precision_recall, "Precision and recall, by candidate", "Chance is the share of nodules."))
    if froc is not None:
        charts.append(froc_chart(figures.froc_figure(froc), froc))
    return Section("Ranking", charts=charts)


def _diameter_table(validation: pd.DataFrame, threshold: float) -> Table:
    """Count the nodule candidates of each diameter group, and those with a probability above a threshold."""
    nodules = validation[validation["class"]]
    names = [f"{low} to {high} mm" for low, high in pairwise(DIAMETER_EDGES)]
    names = ["no annotation", *names, f"{DIAMETER_EDGES[-1]} mm and more"]
    edges = [-math.inf, math.ulp(0), *DIAMETER_EDGES[1:], math.inf]
    group = pd.cut(nodules["diameter_mm"], edges, labels=names, right=False).rename("group")
    groups = nodules.assign(found=nodules["probability"] > threshold).groupby(group, observed=True)
    rows = groups.agg(candidates=("found", "size"), found=("found", "sum"), sensitivity=("found", "mean")).reset_index()
    lower, upper = wilson_interval(rows["found"], rows["candidates"])
    rows["interval"] = [f"{low:.0%} to {high:.0%}" for low, high in zip(lower, upper, strict=True)]
    columns = {
        "group": ("diameter", ""),
        "candidates": ("candidates", ",d"),
        "found": ("found", ",d"),
        "sensitivity": ("sensitivity", ".1%"),
        "interval": (_INTERVAL, ""),
    }
    return Table(f"Nodule candidates, found above {threshold:g}", rows, columns)


def worst_candidates(validation: pd.DataFrame, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give false negatives and false positives, the highest loss first."""
    wrong = validation[validation["class"] != (validation["probability"] > threshold)]
    wrong = wrong.sort_values("loss", ascending=False, kind="stable")
    return wrong[wrong["class"]], wrong[~wrong["class"]]


def picture(candidates: pd.DataFrame, run: Run) -> list[Case]:
    """Describe and picture rows of the validation predictions, in their order; one CT at a time is in memory."""
    cases = {}
    candidates = candidates.reset_index(drop=True)
    for seriesuid, of_scan in candidates.groupby("seriesuid"):
        path, scan = run.scans.get(str(seriesuid)), None
        if path is not None:
            try:
                scan = read_scan(path, orientation=None)
            except LunaError as error:
                logger.warning("no picture: %s", error)
        for number, row in of_scan.iterrows():
            cases[number] = _case(row, run, scan)
    return [cases[number] for number in candidates.index]


def _case(row: pd.Series, run: Run, scan: Scan | None) -> Case:
    center = row[COORDINATES].to_numpy(dtype=float)
    facts = {
        "probability": show(row["probability"], "probability"),
        "loss": f"{row['loss']:.3f}",
        "position": ", ".join(f"{value:.1f}" for value in center) + " mm",
        "series": row["seriesuid"],
    }
    outlined, stacks, labels = None, [], []
    if run.annotations is not None:
        nodules = run.annotations[run.annotations["seriesuid"] == row["seriesuid"]]
        distances = np.linalg.norm(nodules[COORDINATES] - center, axis=1)
        facts["nearest nodule"] = "none in this scan"
        if len(nodules):
            nodule = nodules.iloc[distances.argmin()]
            facts["nearest nodule"] = f"{distances.min():.1f} mm away, {nodule['diameter_mm']:.1f} mm wide"
            outlined = ball(nodule[COORDINATES], max(nodule["diameter_mm"], 0))
    if scan is None:
        facts["pictures"] = "none: the CT is missing or damaged"
    else:
        facts["voxel z, y, x"] = ", ".join(map(str, scan.geometry.world_to_index(center[None])[0]))
        stacks = draw_stacks(scan.voxels, scan.geometry, center, outlined)
        slices = scan.geometry.world_to_index(stacks[0].positions)[:, 0]
        labels = [f"slice {index + 1} of {scan.geometry.shape[0]}" for index in slices]
    return Case(f"Candidate {row['row']}", facts, stacks, labels)
