"""Results of a cross-validation: tables, LUNA16's evaluation and an HTML page."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.candidates import DatasetScans
from luna_monai.data.tables import COORDINATES, read_findings
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes, write_json, write_submission, write_table
from luna_monai.metrics.froc import FrocResult, evaluate_froc, evaluated_scans
from luna_monai.metrics.per_class import RANKING_METRICS, per_class_metrics
from luna_monai.reports.figures import froc_figure
from luna_monai.reports.pages import render_page
from luna_monai.reports.run_report import chart
from luna_monai.training.metrics import FROC_METRICS
from luna_monai.training.run_files import PREDICTIONS, read_predictions

logger = logging.getLogger(__name__)

_COUNTS = ["scans", "candidates", "nodules"]
_NOTE = (
    "sensitivity/R is LUNA16's sensitivity at R false positives per scan. cpm is the mean of these sensitivities. All "
    "other metrics count candidates, at a threshold of 0.5. The row 'pooled' evaluates the predictions of all folds."
)


def write_results(
    output_dir: Path,
    candidates: pd.DataFrame,
    folds: pd.Series,
    scans: DatasetScans,
    done: Sequence[int],
    bootstrap: int = 1000,
) -> None:
    """Evaluate the predictions of each fold and of all folds together, and write the results.

    - ``predictions.csv``: predictions of the model of each fold for the scans that it was not trained on;
    - ``submission.csv``: the same predictions in LUNA16's submission format;
    - ``folds.csv``: metrics of each fold, their mean and standard deviation, and metrics of all predictions together;
    - ``crossval.json``: LUNA16's evaluation of all predictions with its bootstrap interval;
    - ``crossval.html``: the table of ``folds.csv``, and the FROC curves of all predictions and of each fold.

    Args:
        output_dir: folder with ``foldN/predictions/val.csv``.
        candidates: the candidate table, indexed by row.
        folds: the fold of each candidate.
        scans: the CTs of the dataset.
        done: numbers of the trained folds; at least one.
        bootstrap: number of bootstrap samples of scans; 0 for no interval.

    Raises:
        LunaError: if the predictions of a fold are missing or NaN, or a candidate is not predicted exactly once.
    """
    of_folds = {fold: read_predictions(output_dir / f"fold{fold}" / PREDICTIONS / "val.csv") for fold in done}
    predictions = pd.concat(of_folds, names=["fold"]).reset_index("fold").astype({"class": int})
    predictions = predictions.sort_values("row", kind="stable", ignore_index=True)
    expected = folds[folds.isin(done)].sort_index()
    columns, found = ["seriesuid", *COORDINATES, "class"], predictions.set_index("row")
    same = found["fold"].equals(expected)
    if not same or not np.array_equal(found[columns], candidates.loc[expected.index, columns]):
        count = f"{len(predictions)} predictions for {len(expected)} candidates"
        raise LunaError(f"{output_dir}: folds were trained on other candidates ({count}); use the same dataset for all")
    annotations, excluded = read_findings(scans.dataset_dir)

    def evaluate(part: pd.DataFrame, samples: int = 0) -> FrocResult:
        seriesuids = evaluated_scans(part["seriesuid"], candidates["seriesuid"], scans.paths)
        return evaluate_froc(part, annotations, excluded, seriesuids, bootstrap=samples)

    parts = [part for _, part in predictions.groupby("fold")]
    curves, pooled = [*map(evaluate, parts)], evaluate(predictions, bootstrap)
    table = pd.DataFrame([*map(_row, parts, curves)], index=[*map(str, done)])
    spread = table.drop(columns=_COUNTS).agg(["mean", "std"])
    table = pd.concat([table, spread, pd.DataFrame([_row(predictions, pooled)], index=["pooled"])])
    table = table.astype(dict.fromkeys(_COUNTS, "Int64")).rename_axis("fold").reset_index()
    missing = sorted(set(folds) - set(done))
    notes = [f"Folds that are not trained yet: {', '.join(map(str, missing))}."] if missing else []
    notes.append(pooled.summary())
    page = render_page(
        "report.html",
        brand="luna-monai cross-validation",
        name=output_dir.resolve().name,
        notes=notes,
        sections=[
            {"title": "Folds", "table": table, "note": _NOTE},
            {
                "title": "FROC",
                "charts": [chart(froc_figure(pooled, folds=curves), "FROC", "Thin gray lines: single folds.")],
            },
        ],
    )
    write_bytes(output_dir / "crossval.html", page.encode(errors="replace"))
    write_table(output_dir / "folds.csv", table)
    write_table(output_dir / "predictions.csv", predictions)
    write_submission(output_dir / "submission.csv", predictions)
    write_json(output_dir / "crossval.json", pooled.to_dict())
    for line in [*table.loc[:, :"cpm"].to_string(index=False).splitlines(), *notes]:
        logger.info(line)
    logger.info("Results: %s", output_dir)


def _row(part: pd.DataFrame, froc: FrocResult) -> dict[str, Any]:
    metrics = per_class_metrics(part["class"], part["probability"], part["loss"])
    counts = {"scans": froc.scans, "candidates": len(part), "nodules": froc.nodules}
    of_candidates = {name: metrics[name] for name in RANKING_METRICS}
    return counts | of_candidates | dict(zip(FROC_METRICS, [froc.cpm, *froc.sensitivity], strict=True))
