"""What the folds of a cross-validation say together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.annotations import read_findings
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes, write_json, write_submission, write_table
from luna_monai.metrics.froc import FrocResult, evaluate_froc
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports.figures import COLOURS, froc_figure, to_png
from luna_monai.scans.sources import find_scans
from luna_monai.training.froc import FROC_METRICS

logger = logging.getLogger(__name__)

#: Columns of the table beside fold and sizes: name of the column, name of the metric.
_METRICS = {
    "roc_auc": "roc_auc",
    "average_precision": "average_precision",
    "recall": "pr/recall",
    "precision": "pr/precision",
    "f1_score": "pr/f1_score",
}


def write_results(
    output_dir: str | Path, folds: Sequence[int], candidates: pd.DataFrame, bootstrap: int = 1000
) -> None:
    """Put the folds' predictions together and judge them as LUNA16 does.

    - ``predictions.csv``: what each fold's model said about the scans that it had not seen;
    - ``submission.csv``: the same in LUNA16's form;
    - ``folds.csv``: metrics of each fold, their mean and standard deviation, and of all predictions together;
    - ``crossval.json``: the same, and LUNA16's evaluation with its bootstrap interval;
    - ``froc.png``: the FROC curve with its interval, and that of each fold.

    Args:
        output_dir: folder with ``foldN/predictions/val.csv``.
        folds: the numbers.
        candidates: the candidate table, indexed by row.
        bootstrap: bootstrap samples of scans; 0 for no interval.

    Raises:
        LunaError: when the predictions of a fold are missing, or not each candidate is predicted exactly once.
    """
    output_dir = Path(output_dir)
    dataset_dir = candidates.attrs["dataset_dir"]
    predictions = pool_predictions(output_dir, folds, candidates)
    annotations, excluded = read_findings(dataset_dir)

    def evaluate(part: pd.DataFrame, seriesuids: Sequence[str], samples: int = 0) -> FrocResult:
        return evaluate_froc(part, annotations, excluded, seriesuids, bootstrap=samples)

    of_fold = {fold: predictions[predictions["fold"] == fold] for fold in folds}
    curves = {fold: evaluate(part, sorted(part["seriesuid"].unique())) for fold, part in of_fold.items()}
    pooled = evaluate(predictions, list(find_scans(dataset_dir)), bootstrap)
    table = fold_table(of_fold, curves, predictions, pooled)

    write_table(output_dir / "predictions.csv", predictions)
    write_submission(output_dir / "submission.csv", predictions)
    write_table(output_dir / "folds.csv", table)
    content = {
        "folds": table.astype(object).where(table.notna(), None).to_dict("records"),
        "seed_of_bootstrap": 0,
        "froc": pooled.to_dict(),
    }
    write_json(output_dir / "crossval.json", content)
    write_bytes(output_dir / "froc.png", draw_folds(pooled, curves))
    for line in table_lines(table, pooled):
        logger.info(line)
    logger.info("Results: %s", output_dir)


def pool_predictions(output_dir: Path, folds: Sequence[int], candidates: pd.DataFrame) -> pd.DataFrame:
    """Read the validation predictions of all folds.

    Args:
        output_dir: folder with ``foldN/predictions/val.csv``.
        folds: the numbers.
        candidates: the candidate table, indexed by row.

    Returns:
        The columns of a run's predictions after ``fold``, in the order of the candidate table.

    Raises:
        LunaError: when a file is missing, or not each candidate is predicted exactly once.
    """
    parts = []
    for fold in folds:
        path = output_dir / f"fold{fold}" / "predictions" / "val.csv"
        if not path.is_file():
            raise LunaError(f"{path}: no such file; delete {path.parents[1]} to train this fold again")
        part = pd.read_csv(path, dtype={"seriesuid": str})
        part.insert(0, "fold", fold)
        parts.append(part)
    predictions = pd.concat(parts).sort_values("row", kind="stable", ignore_index=True)
    twice = predictions["row"].duplicated()
    if twice.any():
        row = predictions.loc[twice, "row"].iloc[0]
        raise LunaError(f"{output_dir}: {twice.sum()} candidates are validated in two folds, the first in row {row}")
    other = not predictions["row"].isin(candidates.index).all() or not np.array_equal(
        predictions["seriesuid"], candidates.loc[predictions["row"], "seriesuid"]
    )
    if other or len(predictions) != len(candidates):
        raise LunaError(
            f"{output_dir}: the folds were trained on other candidates ({len(predictions)} predictions for "
            f"{len(candidates)} candidates of {candidates.attrs['dataset_dir']}); use the same dataset for all folds"
        )
    return predictions


def fold_table(
    parts: dict[int, pd.DataFrame], curves: dict[int, FrocResult], predictions: pd.DataFrame, pooled: FrocResult
) -> pd.DataFrame:
    """Make the table of a cross-validation.

    Args:
        parts: predictions of each fold.
        curves: LUNA16's evaluation of each fold.
        predictions: those of all folds.
        pooled: LUNA16's evaluation of these.

    Returns:
        A row for each fold, then ``mean``, ``std`` (of the sample, undefined values left out) and ``pooled``.
    """
    table = pd.DataFrame([_row(fold, part, curves[fold]) for fold, part in parts.items()])
    metrics = table.columns[4:]
    spread = pd.DataFrame(
        [{"fold": name, **getattr(table[metrics], name)().to_dict()} for name in ("mean", "std")]
    ).astype({"fold": object})
    last = pd.DataFrame([_row("pooled", predictions, pooled)])
    table = pd.concat([table.astype({"fold": object}), spread, last], ignore_index=True)
    return table.astype(dict.fromkeys(("scans", "candidates", "nodule_candidates"), "Int64"))


def _row(name: int | str, part: pd.DataFrame, result: FrocResult) -> dict[str, Any]:
    metrics = per_class_metrics(part["class"], part["probability"], part["loss"])
    return {
        "fold": name,
        "scans": result.scans,
        "candidates": len(part),
        "nodule_candidates": int((part["class"] == 1).sum()),
        **{column: metrics[metric] for column, metric in _METRICS.items()},
        **dict(zip(FROC_METRICS, [result.cpm, *result.sensitivity.tolist()], strict=True)),
    }


def draw_folds(pooled: FrocResult, curves: dict[int, FrocResult]) -> bytes:
    """Draw the FROC curve of all folds together over those of each, as PNG."""
    figure = froc_figure(pooled, title=f"Cross-validation in {len(curves)} folds")
    axes = figure.axes[0]
    dense = np.exp2(np.linspace(-3, 3, 400))
    label = "each fold"
    for result in curves.values():
        if result.nodules:
            values = np.interp(dense, result.curve["false_positives_per_scan"], result.curve["sensitivity"])
            axes.plot(dense, values, color=COLOURS["muted"], linewidth=0.8, alpha=0.6, zorder=1, label=label)
            label = "_the same"
    if axes.get_legend() is not None:
        axes.legend(loc="lower right", fontsize=9, frameon=False)
    return to_png(figure)


def table_lines(table: pd.DataFrame, pooled: FrocResult) -> list[str]:
    """Lay out the table of a cross-validation for the console.

    Args:
        table: what :func:`fold_table` returned.
        pooled: LUNA16's evaluation of all folds together.

    Returns:
        Lines of text.
    """
    shown = ["roc_auc", "average_precision", "recall", "precision", "f1_score", "cpm"]
    widths = {"scans": 6, "candidates": 10, "nodule_candidates": 17}
    titles = [f"{name:>{width}}" for name, width in widths.items()] + [f"{name:>17}" for name in shown]
    lines = [f"{'fold':>6} {' '.join(titles)}"]
    for row in table.to_dict("records"):
        sizes = [_size(row[name], width) for name, width in widths.items()]
        values = " ".join("n/a".rjust(17) if row[name] != row[name] else f"{row[name]:17.4f}" for name in shown)
        lines.append(f"{row['fold']!s:>6} {' '.join(sizes)} {values}")
    score = f"CPM of all folds together {pooled.cpm:.4f}"
    if pooled.interval is not None:
        interval = pooled.interval
        score += f", 95 % interval {interval.cpm['lower']:.4f} to {interval.cpm['upper']:.4f}"
    return [*lines, score]


def _size(value: Any, width: int) -> str:
    return "".rjust(width) if pd.isna(value) else f"{value:>{width},}"
