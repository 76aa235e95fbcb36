"""The report of a run: a self-contained HTML file with curves, metrics and the worst errors."""

import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from luna_monai.data.candidates import candidate_table
from luna_monai.data.tables import ANNOTATIONS, COORDINATES, read_findings
from luna_monai.detection.grid import to_image
from luna_monai.errors import LunaError, reason_of
from luna_monai.literals import text_of
from luna_monai.metrics.froc import evaluate_froc, evaluated_scans
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports import figures
from luna_monai.reports.pages import render_page, show
from luna_monai.reports.pictures import ball, data_url, draw_stacks
from luna_monai.scans.scan import read_scan
from luna_monai.scans.sources import find_scans
from luna_monai.tables import read_table
from luna_monai.training.run_files import CONFIG, METRICS, PREDICTIONS, read_metrics, read_predictions

logger = logging.getLogger(__name__)

#: Titles of the charts over the epochs, and their columns of metrics.csv.
_EPOCH_CHARTS = {
    "Mean cross-entropy loss by class": ("loss/all", "loss/neg", "loss/pos"),
    "Correct predictions by class (%)": ("correct/all", "correct/neg", "correct/pos"),
    "Ranking metrics": ("cpm", "roc_auc", "average_precision"),
    "Metrics at a threshold of 0.5": ("pr/f1_score", "pr/precision", "pr/recall"),
}
#: Edges of the diameter groups in mm; 6 and 8 mm are the Fleischner Society's limits for follow-up. 0: no annotation.
DIAMETER_EDGES = (0, 4, 6, 8, 10, 15, 20)
_BOOTSTRAP = 1000
#: Largest number of false negatives, and of false positives, that are shown.
CASES = 12


def build_report(folder: Path, dataset_dir: str | Path | None = None, threshold: float = 0.5) -> str:
    """Build the report of a run.

    Args:
        folder: the run folder, ``output_dir`` of the training.
        dataset_dir: the LUNA16 folder; None for the ``dataset_dir`` in the run's ``config.yaml``.
        threshold: a candidate is classified as a nodule if its probability is strictly above the threshold.

    Returns:
        A self-contained HTML document. Without the dataset, it contains no FROC curve and no pictures.

    Raises:
        LunaError: if a file of the run is missing or damaged, if the predictions are NaN because the training diverged,
            or if a given ``dataset_dir`` has no annotations or candidates.
    """
    metrics = read_metrics(folder / METRICS)
    training, validation = (read_predictions(folder / PREDICTIONS / f"{split}.csv") for split in ("trn", "val"))
    config = _read_config(folder / CONFIG)
    epoch = best_epoch(metrics, validation)
    charts = _ranking_charts(validation)
    dataset = Path(dataset_dir or str(text_of(config.get("dataset_dir", ""))))
    annotations, scans, froc = None, {}, None
    if dataset_dir or (dataset / ANNOTATIONS).is_file():
        annotations, excluded = read_findings(dataset)
        scans = find_scans(dataset)
        candidates = read_table(candidate_table(dataset, text_of(config.get("candidates_file"))), numeric=[])
        seriesuids = evaluated_scans(validation["seriesuid"], candidates["seriesuid"], scans)
        froc = evaluate_froc(validation, annotations, excluded, seriesuids, bootstrap=_BOOTSTRAP)
        charts.append(chart(figures.froc_figure(froc), "FROC of nodules, by LUNA16's rules", froc.summary() + "."))
    missed, false_positives = worst_candidates(validation, threshold)
    cases = _cases(pd.concat([missed, false_positives]), annotations, scans)
    sections = [
        {"title": "Training", "charts": _training_charts(metrics, epoch)},
        {"title": "Validation", "charts": charts},
        {"title": "Sensitivity by diameter", "table": diameter_table(validation, threshold)},
        {"title": "Missed nodules", "cases": [cases[row] for row in missed.index]},
        {"title": "False positives", "cases": [cases[row] for row in false_positives.index]},
    ]
    return render_page(
        "report.html",
        brand="luna-monai run report",
        name=folder.resolve().name,
        epochs=metrics["epoch"].max(),
        best_epoch=epoch,
        fold=str(config.get("fold")),
        metrics=per_class_metrics(validation["class"], validation["probability"], validation["loss"], threshold),
        scans=validation["seriesuid"].nunique(),
        shared_scans=len(set(validation["seriesuid"]) & set(training["seriesuid"])),
        threshold=threshold,
        froc=froc,
        sections=sections,
        config=yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError) as error:
        raise LunaError(f"{path}: not the configuration of a run ({reason_of(error)})") from None


def best_epoch(metrics: pd.DataFrame, validation: pd.DataFrame) -> int | None:
    """Find the epoch of the saved predictions by their mean loss; None if no epoch has a loss."""
    loss = metrics[metrics["split"] == "val"].set_index("epoch")["loss/all"]
    difference = (loss - validation["loss"].mean()).abs().dropna()
    return None if difference.empty else int(difference.index[int(difference.argmin())])


def chart(figure: Figure, title: str, text: str) -> dict[str, str]:
    """Make a chart of a page: a figure with a title and a caption."""
    return {"title": title, "source": data_url(figures.to_bytes(figure, "svg"), "svg+xml"), "text": text}


def _training_charts(metrics: pd.DataFrame, epoch: int | None) -> list[dict[str, str]]:
    charts, text = [], f"Dashed: training (trn). Solid: validation (val). Dotted: best epoch ({show(epoch)})."
    for title, all_columns in _EPOCH_CHARTS.items():
        columns = [column for column in all_columns if column in metrics]
        if metrics[columns].notna().any(axis=None):
            charts.append(chart(figures.epoch_figure(metrics, columns, epoch), title, text))
    return charts


def _ranking_charts(validation: pd.DataFrame) -> list[dict[str, str]]:
    """Draw ROC and precision-recall curves; none if a class has no candidates."""
    is_nodule = validation["class"].to_numpy()
    if is_nodule.all() or not is_nodule.any():
        return []
    drawn = figures.ranking_figures(is_nodule, validation["probability"].to_numpy())
    titles = ("ROC curve of candidates", "Precision-recall curve of candidates")
    return [chart(figure, title, "Dashed: chance level.") for figure, title in zip(drawn, titles, strict=True)]


def diameter_table(validation: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Count the nodule candidates of each diameter group, and those whose probability is above a threshold."""
    nodules = validation[validation["class"]]
    names = [f"{low} to {high} mm" for low, high in pairwise(DIAMETER_EDGES)]
    names = ["no annotation", *names, f"{DIAMETER_EDGES[-1]} mm and more"]
    edges = [-math.inf, math.ulp(0), *DIAMETER_EDGES[1:], math.inf]
    group = pd.cut(nodules["diameter_mm"], edges, labels=names, right=False).rename("diameter")
    found = (nodules["probability"] > threshold).groupby(group, observed=True)
    return found.agg(candidates="size", found="sum", sensitivity="mean").reset_index()


def worst_candidates(validation: pd.DataFrame, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the false negatives and the false positives with the highest loss, highest loss first."""
    wrong = validation[validation["class"] != (validation["probability"] > threshold)]
    wrong = wrong.sort_values("loss", ascending=False, kind="stable")
    return wrong[wrong["class"]].head(CASES), wrong[~wrong["class"]].head(CASES)


def _cases(rows: pd.DataFrame, annotations: pd.DataFrame | None, scans: dict[str, Path]) -> dict[Any, dict[str, Any]]:
    """Make facts and pictures of candidates, by index. Only one CT at a time is in memory."""
    cases = {}
    for seriesuid, of_scan in rows.groupby("seriesuid"):
        try:
            scan = read_scan(scans[str(seriesuid)], orientation=None)
            image = to_image(scan.voxels, scan.geometry)
        except (KeyError, LunaError):
            image = None
        for index, row in of_scan.iterrows():
            center, stacks, outlined = row[COORDINATES].to_numpy(dtype=float), [], None
            facts = {
                "probability": show(row["probability"]),
                "loss": show(row["loss"]),
                "position": ", ".join(f"{value:.1f}" for value in center) + " mm",
                "series": str(seriesuid),
            }
            if annotations is not None:
                nodules = annotations[annotations["seriesuid"] == seriesuid]
                distance = np.linalg.norm(nodules[COORDINATES] - center, axis=1)
                facts["nearest nodule"] = "none in this scan"
                if len(nodules):
                    x, y, z, diameter = nodules[[*COORDINATES, "diameter_mm"]].iloc[int(distance.argmin())]
                    facts["nearest nodule"] = f"{distance.min():.1f} mm away, diameter {diameter:.1f} mm"
                    outlined = ball((x, y, z), max(diameter, 0))
            if image is not None:
                facts["voxel z, y, x"] = ", ".join(map(str, scan.geometry.world_to_index(center)[0]))
                stacks = draw_stacks(image, center, outlined)
            cases[index] = {"title": f"Candidate {row['row']}", "facts": facts, "stacks": stacks}
    return cases
