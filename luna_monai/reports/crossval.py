"""The folds of a cross-validation together: tables, LUNA16's evaluation and a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from luna_monai.data.candidates import DatasetScans
from luna_monai.data.tables import read_findings
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes, write_json, write_submission, write_table
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, FrocResult, evaluate_froc, evaluated_scans, rate_name
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports.figures import froc_figure, to_png
from luna_monai.reports.pages import Section, Table, render_page
from luna_monai.reports.run_report import froc_chart
from luna_monai.training.run_files import read_predictions

logger = logging.getLogger(__name__)

#: Columns of the table: title on the page and format.
_COLUMNS = {
    "fold": ("fold", ""),
    **{name: (name.replace("_", " "), ",.0f") for name in ("scans", "candidates", "nodule_candidates")},
    **{
        name: (name.replace("_", " "), ".4f")
        for name in ("roc_auc", "average_precision", "recall", "precision", "f1_score", "cpm")
    },
    **{f"sensitivity/{rate:g}": (f"at {rate_name(rate)}", ".4f") for rate in FALSE_POSITIVES_PER_SCAN},
}
_NOTE = (
    "'at' is LUNA16's sensitivity at that number of false positives per scan, of which the CPM is the mean; all else "
    "is of candidates, at a threshold of 0.5. 'pooled' is all folds' predictions together."
)


def write_results(
    output_dir: str | Path,
    folds: Sequence[int],
    candidates: pd.DataFrame,
    scans: DatasetScans,
    bootstrap: int = 1000,
    missing: Sequence[int] = (),
) -> None:
    """Evaluate the folds' predictions, each and together, as LUNA16 does.

    - ``predictions.csv``: predictions of each fold's model for the scans that it was not trained on;
    - ``submission.csv``: the same in LUNA16's form;
    - ``folds.csv``: metrics of each fold, their mean and standard deviation, and of all predictions together;
    - ``crossval.json``: the same, and LUNA16's evaluation with its bootstrap interval;
    - ``froc.png`` and ``crossval.html``: the FROC curve with its interval, that of each fold, and the table.

    While folds are missing, only ``folds.csv`` and ``crossval.html`` are written, of the folds that there are.

    Args:
        output_dir: folder with ``foldN/predictions/val.csv``.
        folds: the numbers of the folds that are trained.
        candidates: the candidate table, indexed by row.
        scans: the CTs of the dataset.
        bootstrap: bootstrap samples of scans; 0 for no interval.
        missing: the numbers of the folds that are not trained yet.

    Raises:
        LunaError: when the predictions of a fold are missing or NaN, or a candidate is not predicted exactly once.
    """
    output_dir = Path(output_dir)
    predictions = pool_predictions(output_dir, folds, candidates, complete=not missing)
    annotations, excluded = read_findings(scans.dataset_dir)

    def evaluate(part: pd.DataFrame, samples: int = 0) -> FrocResult:
        others = candidates.loc[~candidates["seriesuid"].isin(part["seriesuid"]), "seriesuid"]
        seriesuids = evaluated_scans(part["seriesuid"], others, scans.paths)
        return evaluate_froc(part, annotations, excluded, seriesuids, bootstrap=samples)

    of_fold = dict(list(predictions.groupby("fold")))
    curves = [evaluate(part) for part in of_fold.values()]
    pooled = evaluate(predictions, bootstrap)
    table = pd.DataFrame([_row(fold, part, one) for (fold, part), one in zip(of_fold.items(), curves, strict=True)])
    metrics = table.loc[:, "roc_auc":]
    rows = [{"fold": name, **getattr(metrics, name)()} for name in ("mean", "std")]
    table = pd.concat([table.astype({"fold": object}), pd.DataFrame([*rows, _row("pooled", predictions, pooled)])])
    table = table.astype(dict.fromkeys(("scans", "candidates", "nodule_candidates"), "Int64"))
    figure = froc_figure(pooled, f"Cross-validation in {len(curves)} folds", curves)

    write_table(output_dir / "folds.csv", table)
    page = render_page(
        "report.html",
        brand="luna-monai cross-validation",
        name=output_dir.resolve().name,
        notes=[f"Folds that are not trained yet: {', '.join(map(str, missing))}."] if missing else [],
        sections=[
            Section("Folds", tables=[Table("Metrics by fold", table, _COLUMNS, _NOTE)]),
            Section(
                "FROC", charts=[froc_chart(figure, pooled)] if pooled.nodules else [], note="Thin lines are folds."
            ),
        ],
    )
    write_bytes(output_dir / "crossval.html", page.encode())
    if not missing:
        write_table(output_dir / "predictions.csv", predictions)
        write_submission(output_dir / "submission.csv", predictions)
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        write_json(output_dir / "crossval.json", {"folds": rows, "seed_of_bootstrap": 0, "froc": pooled.to_dict()})
        write_bytes(output_dir / "froc.png", to_png(figure))
    shown = table.loc[:, :"cpm"].astype(object).where(table.loc[:, :"cpm"].notna(), "n/a")
    for line in shown.to_string(index=False, float_format="{:.4f}".format).splitlines():
        logger.info(line)
    logger.info("All folds together: %s", pooled.summary())
    logger.info("Results: %s", output_dir)


def pool_predictions(
    output_dir: Path, folds: Sequence[int], candidates: pd.DataFrame, complete: bool = True
) -> pd.DataFrame:
    """Read the validation predictions of folds.

    Args:
        output_dir: folder with ``foldN/predictions/val.csv``.
        folds: the numbers.
        candidates: the candidate table, indexed by row.
        complete: whether all candidates must be predicted, or only those of the scans that occur.

    Returns:
        The columns of a run's predictions after ``fold``, in the order of the candidate table.

    Raises:
        LunaError: when a file is missing or has NaN, or a candidate is not predicted exactly once.
    """
    parts = []
    for fold in folds:
        path = output_dir / f"fold{fold}" / "predictions" / "val.csv"
        part = read_predictions(path)
        undefined = int(part["probability"].isna().sum())
        if undefined:
            raise LunaError(
                f"{path}: {undefined:,} of {len(part):,} probabilities are NaN, because the training of fold {fold} "
                f"diverged; delete {path.parents[1]} and train this fold again with a lower learning rate"
            )
        part.insert(0, "fold", fold)
        parts.append(part.astype({"class": int}))
    predictions = pd.concat(parts).sort_values("row", kind="stable", ignore_index=True)
    expected = candidates if complete else candidates[candidates["seriesuid"].isin(predictions["seriesuid"])]
    if not predictions.set_index("row")["seriesuid"].equals(expected["seriesuid"].sort_index()):
        raise LunaError(
            f"{output_dir}: the folds were trained on other candidates ({len(predictions)} predictions for "
            f"{len(expected)} candidates); use the same dataset for all folds"
        )
    return predictions


def _row(name: object, part: pd.DataFrame, result: FrocResult) -> dict[str, Any]:
    metrics = per_class_metrics(part["class"], part["probability"], part["loss"])
    metrics |= {name.removeprefix("pr/"): value for name, value in metrics.items()}
    facts = {"fold": name, "scans": result.scans, "candidates": len(part), "nodule_candidates": metrics["count/pos"]}
    sensitivity = {
        f"sensitivity/{rate:g}": one for rate, one in zip(FALSE_POSITIVES_PER_SCAN, result.sensitivity, strict=True)
    }
    values = metrics | facts | {"cpm": result.cpm} | sensitivity
    return {column: values[column] for column in _COLUMNS}
