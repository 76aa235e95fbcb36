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
from luna_monai.reports import layout
from luna_monai.reports.charts import froc_chart
from luna_monai.reports.figures import COLOURS, froc_figure, plot_froc, to_png
from luna_monai.reports.layout import render_page
from luna_monai.training.run_files import read_predictions

logger = logging.getLogger(__name__)

#: Columns of the table: name of the column, name of the metric.
_METRICS = {
    "roc_auc": "roc_auc",
    "average_precision": "average_precision",
    "recall": "pr/recall",
    "precision": "pr/precision",
    "f1_score": "pr/f1_score",
}
_SIZES = ("scans", "candidates", "nodule_candidates")


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

    of_fold = {fold: predictions[predictions["fold"] == fold] for fold in folds}
    curves = {fold: evaluate(part) for fold, part in of_fold.items()}
    pooled = evaluate(predictions, bootstrap)
    table = fold_table(of_fold, curves, predictions, pooled)
    figure = froc_figure(pooled, title=f"Cross-validation in {len(curves)} folds")
    drawn = [result for result in curves.values() if result.nodules]
    for result, label in zip(drawn, ["each fold", *["_the same"] * len(drawn)], strict=False):
        plot_froc(figure.axes[0], result, color=COLOURS["muted"], linewidth=0.8, alpha=0.6, zorder=1, label=label)
    if drawn:
        figure.axes[0].legend(loc="lower right", fontsize=9, frameon=False, labelcolor=COLOURS["ink"])

    write_table(output_dir / "folds.csv", table)
    page = render_page(
        "crossval.html",
        name=output_dir.resolve().name,
        facts=[(name.replace("_", " "), f"{table[name].iloc[-1]:,}") for name in _SIZES],
        notes=[f"Folds that are not trained yet: {', '.join(map(str, missing))}."] if missing else [],
        charts=[froc_chart(figure, pooled)] if pooled.nodules else [],
        table=_page_table(table),
    )
    write_bytes(output_dir / "crossval.html", page.encode())
    if not missing:
        write_table(output_dir / "predictions.csv", predictions)
        write_submission(output_dir / "submission.csv", predictions)
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        write_json(output_dir / "crossval.json", {"folds": rows, "seed_of_bootstrap": 0, "froc": pooled.to_dict()})
        write_bytes(output_dir / "froc.png", to_png(figure))
    for line in table_lines(table, pooled):
        logger.info(line)
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
        try:
            part = read_predictions(path).astype({"class": int})
        except LunaError as error:
            raise LunaError(f"{error}; delete {path.parents[1]} to train this fold again") from None
        undefined = int(part["probability"].isna().sum())
        if undefined:
            raise LunaError(
                f"{path}: {undefined:,} of {len(part):,} probabilities are NaN, because the training of fold {fold} "
                f"diverged; delete {path.parents[1]} and train this fold again with a lower learning rate"
            )
        part.insert(0, "fold", fold)
        parts.append(part)
    predictions = pd.concat(parts).sort_values("row", kind="stable", ignore_index=True)
    twice = predictions["row"].duplicated()
    if twice.any():
        row = predictions.loc[twice, "row"].iloc[0]
        raise LunaError(f"{output_dir}: {twice.sum()} candidates are validated in two folds, the first in row {row}")
    expected = candidates if complete else candidates[candidates["seriesuid"].isin(predictions["seriesuid"])]
    found = predictions.set_index("row")["seriesuid"]
    if not found.index.equals(expected.index.sort_values()) or (found != expected["seriesuid"].sort_index()).any():
        raise LunaError(
            f"{output_dir}: the folds were trained on other candidates ({len(predictions)} predictions for "
            f"{len(expected)} candidates); use the same dataset for all folds"
        )
    return predictions


def fold_table(
    parts: dict[int, pd.DataFrame], curves: dict[int, FrocResult], predictions: pd.DataFrame, pooled: FrocResult
) -> pd.DataFrame:
    """Make the table of a cross-validation from the predictions and LUNA16's evaluation of each fold, and of all.

    Returns:
        A row for each fold, then ``mean``, ``std`` (of the sample, undefined values left out) and ``pooled``.
    """
    table = pd.DataFrame([_row(fold, part, curves[fold]) for fold, part in parts.items()])
    metrics = table.columns[1 + len(_SIZES) :]
    spread = pd.DataFrame([{"fold": name, **getattr(table[metrics], name)()} for name in ("mean", "std")])
    last = pd.DataFrame([_row("pooled", predictions, pooled)])
    table = pd.concat([part.astype({"fold": object}) for part in (table, spread, last)], ignore_index=True)
    return table.astype(dict.fromkeys(_SIZES, "Int64"))


def _row(name: int | str, part: pd.DataFrame, result: FrocResult) -> dict[str, Any]:
    metrics = per_class_metrics(part["class"], part["probability"], part["loss"])
    return {
        "fold": name,
        **dict(zip(_SIZES, (result.scans, len(part), int((part["class"] == 1).sum())), strict=True)),
        **{column: metrics[metric] for column, metric in _METRICS.items()},
        "cpm": result.cpm,
        **dict(zip((f"sensitivity/{rate:g}" for rate in FALSE_POSITIVES_PER_SCAN), result.sensitivity, strict=True)),
    }


def _page_table(table: pd.DataFrame) -> layout.Table:
    titles = {"roc_auc": "ROC AUC", "f1_score": "F1", "cpm": "CPM"}
    titles |= {f"sensitivity/{rate:g}": f"at {rate_name(rate)}" for rate in FALSE_POSITIVES_PER_SCAN}
    columns: dict[str, Any] = {
        name: (titles.get(name, name.replace("_", " ")), _count if name in _SIZES else layout.number)
        for name in table.columns
    }
    note = (
        "'at' is LUNA16's sensitivity at that number of false positives per scan, of which the CPM is the mean; all "
        "else is of candidates, at a threshold of 0.5. 'pooled' is all folds' predictions together."
    )
    return layout.table("Metrics by fold", table, columns | {"fold": ("fold", layout.text)}, note)


def _count(value: Any) -> layout.Cell:
    return layout.Cell("") if pd.isna(value) else layout.count(value)


def table_lines(table: pd.DataFrame, pooled: FrocResult) -> list[str]:
    """Lay out the table of :func:`fold_table` for the console, and the CPM of all folds together."""
    shown = table[["fold", *_SIZES, *_METRICS, "cpm"]]
    formats: Any = dict.fromkeys(_SIZES, "{:,}".format) | dict.fromkeys([*_METRICS, "cpm"], "{:.4f}".format)
    score = f"CPM of all folds together {pooled.cpm:.4f}"
    if pooled.interval is not None:
        score += f", 95 % interval {pooled.interval.cpm['lower']:.4f} to {pooled.interval.cpm['upper']:.4f}"
    cells = shown.apply(
        lambda column: [
            ("" if column.name in _SIZES else "n/a") if pd.isna(value) else formats.get(column.name, str)(value)
            for value in column
        ]
    )
    return [*cells.to_string(index=False, col_space=8).splitlines(), score]
