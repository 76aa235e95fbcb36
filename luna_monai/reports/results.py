"""The numbers of a report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.metrics.calibration import wilson_interval
from luna_monai.metrics.froc import FrocResult, evaluate_froc, rate_name
from luna_monai.metrics.operating_points import operating_points
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports.run import Run

#: Upper edges of the diameter groups in mm; 6 and 8 mm are the Fleischner Society's limits for follow-up.
DIAMETER_EDGES_MM = (4.0, 6.0, 8.0, 10.0, 15.0, 20.0, math.inf)


def best_epoch(metrics: pd.DataFrame, validation: pd.DataFrame) -> int | None:
    """Find the epoch whose predictions were kept: the one with their mean loss.

    Args:
        metrics: rows of ``metrics.csv``.
        validation: the kept validation predictions.

    Returns:
        The epoch, or None when no epoch has that loss.
    """
    rows = metrics[metrics["split"] == "val"]
    if "loss/all" not in rows or rows["loss/all"].isna().all():
        return None
    kept = float(validation["loss"].mean())
    # Tables are written with fewer digits than they are computed with.
    same = rows[np.isclose(rows["loss/all"], kept, rtol=1e-3, atol=1e-9)]
    if same.empty:
        return None
    nearest = (same["loss/all"] - kept).abs().to_numpy().argmin()
    return int(same["epoch"].iloc[nearest])


def run_froc(run: Run, bootstrap: int, seed: int) -> FrocResult | None:
    """Evaluate the validation predictions as LUNA16 does, on the scans that occur in them.

    Args:
        run: the run.
        bootstrap: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        The evaluation, or None without the dataset's annotations.
    """
    if run.annotations is None:
        return None
    seriesuids = list(dict.fromkeys(run.validation["seriesuid"]))
    return evaluate_froc(run.validation, run.annotations, run.excluded, seriesuids, bootstrap=bootstrap, seed=seed)


def diameter_groups(diameter_mm: pd.Series) -> pd.Series:
    """Sort diameters into groups.

    Args:
        diameter_mm: diameters; 0 where none is known.

    Returns:
        Number of the group: 0 for unknown, i for the i-th of ``DIAMETER_EDGES_MM``.
    """
    groups = np.searchsorted(DIAMETER_EDGES_MM, diameter_mm, side="right") + 1
    return pd.Series(np.where(diameter_mm > 0, groups, 0), index=diameter_mm.index)


def group_name(group: int) -> str:
    """Name a diameter group for a reader."""
    if group == 0:
        return "no annotation"
    lower = DIAMETER_EDGES_MM[group - 2] if group > 1 else 0
    upper = DIAMETER_EDGES_MM[group - 1]
    if group == 1:
        return f"below {upper:g} mm"
    return f"{lower:g} mm and more" if math.isinf(upper) else f"{lower:g} to {upper:g} mm"


def candidates_by_diameter(validation: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Count the nodule candidates of each diameter and how many are called nodules.

    Args:
        validation: the validation predictions.
        threshold: a probability strictly above it calls a nodule.

    Returns:
        ``group``, ``candidates``, ``found``, ``sensitivity``, ``lower``, ``upper`` (95 % Wilson interval),
        ``probability`` (median) and ``loss`` (mean); a row for each group that occurs.
    """
    nodules = validation[validation["class"]]
    table = (
        nodules.assign(group=diameter_groups(nodules["diameter_mm"]), found=nodules["probability"] > threshold)
        .groupby("group")
        .agg(
            candidates=("found", "size"),
            found=("found", "sum"),
            probability=("probability", "median"),
            loss=("loss", "mean"),
        )
        .reset_index()
    )
    return _with_sensitivity(table, "found", "candidates")


def nodules_by_diameter(froc: FrocResult, threshold: float) -> pd.DataFrame:
    """Count the annotated nodules of each diameter and how many are found.

    Args:
        froc: the evaluation of the validation scans.
        threshold: a probability strictly above it calls a nodule.

    Returns:
        ``group``, ``nodules``, ``with_candidate`` (any candidate hits it), ``found`` (one above the threshold does),
        ``at_1`` and ``at_4`` (found at that many false positives per scan), ``sensitivity``, ``lower``, ``upper``.
    """
    nodules = froc.matches.nodules
    table = (
        nodules.assign(
            group=diameter_groups(nodules["diameter_mm"]),
            with_candidate=nodules["probability"].notna(),
            found=nodules["probability"] > threshold,
            at_1=nodules["probability"] >= froc.threshold_at(1),
            at_4=nodules["probability"] >= froc.threshold_at(4),
        )
        .groupby("group")
        .agg(
            nodules=("found", "size"),
            with_candidate=("with_candidate", "sum"),
            found=("found", "sum"),
            at_1=("at_1", "sum"),
            at_4=("at_4", "sum"),
        )
        .reset_index()
    )
    return _with_sensitivity(table, "found", "nodules")


def results_by_subset(run: Run, threshold: float) -> pd.DataFrame:
    """Compute the metrics of each LUNA16 subset in training and validation.

    Args:
        run: the run.
        threshold: a probability strictly above it calls a nodule.

    Returns:
        ``part`` (``training`` or ``validation``), ``subset``, ``scans``, ``candidates`` and the metrics of
        :func:`~luna_monai.metrics.per_class.per_class_metrics`.
    """
    rows = []
    for part, predictions in (("validation", run.validation), ("training", run.training)):
        if predictions is None:
            continue
        subsets = predictions["seriesuid"].map({uid: run.subset(uid) for uid in predictions["seriesuid"].unique()})
        for subset, of_subset in predictions.groupby(subsets):
            metrics = per_class_metrics(of_subset["class"], of_subset["probability"], of_subset["loss"], threshold)
            scans = of_subset["seriesuid"].nunique()
            rows.append({"part": part, "subset": int(subset), "scans": scans, "candidates": len(of_subset), **metrics})
    return pd.DataFrame(rows)


def wanted_points(validation: pd.DataFrame) -> list[tuple[str, dict[str, Any]]]:
    """Find thresholds for wanted sensitivities and false positives per scan, on candidates of both classes."""
    scans = validation["seriesuid"].nunique()
    points = records(operating_points(validation["probability"], validation["class"], scans))
    return [(_wanted(point["kind"], point["wanted"]), point) for point in points]


def _wanted(kind: str, value: float) -> str:
    if kind == "sensitivity":
        return f"sensitivity {100 * value:g} %"
    return f"{rate_name(value)} false positive{'s' * (value > 1)} per scan"


def worst_candidates(validation: pd.DataFrame, threshold: float, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pick the mistakes of which the model was surest.

    Args:
        validation: the validation predictions.
        threshold: a probability strictly above it calls a nodule.
        count: at most so many of each kind.

    Returns:
        False negatives by rising, and false positives by falling probability.
    """
    called = validation["probability"] > threshold
    missed = validation[validation["class"] & ~called].sort_values("probability", kind="stable")
    alarms = validation[~validation["class"] & called].sort_values("probability", ascending=False, kind="stable")
    return missed.head(count), alarms.head(count)


def nearest_finding(point: np.ndarray, findings: pd.DataFrame | None) -> tuple[float, pd.Series] | None:
    """Find the finding nearest to a point.

    Args:
        point: world position x, y, z in mm.
        findings: the findings of the same scan: coordinates and ``diameter_mm``.

    Returns:
        Distance of the centres in mm and the finding's row, or None when there is none.
    """
    if findings is None or findings.empty:
        return None
    distances = np.linalg.norm(findings[COORDINATES].to_numpy() - point, axis=1)
    nearest = int(distances.argmin())
    return float(distances[nearest]), findings.iloc[nearest]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Give the rows of a table as dictionaries by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _with_sensitivity(table: pd.DataFrame, found: str, total: str) -> pd.DataFrame:
    lower, upper = wilson_interval(table[found], table[total])
    return table.assign(sensitivity=table[found] / table[total], lower=lower, upper=upper)
