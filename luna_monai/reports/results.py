"""The numbers of a report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.metrics.calibration import wilson_interval
from luna_monai.metrics.froc import FrocResult, evaluate_froc, evaluated_scans
from luna_monai.metrics.per_class import per_class_metrics
from luna_monai.reports.run import Run

#: Diameter groups and their upper edges in mm; 6 and 8 mm are the Fleischner Society's limits for follow-up.
DIAMETER_GROUPS: dict[str, float] = {
    "no annotation": math.ulp(0),
    "below 4 mm": 4,
    "4 to 6 mm": 6,
    "6 to 8 mm": 8,
    "8 to 10 mm": 10,
    "10 to 15 mm": 15,
    "15 to 20 mm": 20,
    "20 mm and more": math.inf,
}


def best_epoch(metrics: pd.DataFrame, validation: pd.DataFrame) -> int | None:
    """Find the epoch whose predictions were kept by their mean loss; None when no epoch has that loss."""
    rows = metrics[metrics["split"] == "val"].reindex(columns=["epoch", "loss/all"])
    kept = float(validation["loss"].mean())
    # Tables are written with fewer digits than they are computed with.
    same = rows[np.isclose(rows["loss/all"].to_numpy(dtype=float), kept, rtol=1e-3, atol=1e-9)]
    return None if same.empty else int(same["epoch"].loc[(same["loss/all"] - kept).abs().idxmin()])


def run_froc(run: Run, bootstrap: int, seed: int) -> FrocResult | None:
    """Evaluate the validation predictions as LUNA16 does; None without the dataset's annotations."""
    if run.annotations is None:
        return None
    trained: list[str] = [] if run.training is None else run.training["seriesuid"].tolist()
    seriesuids = evaluated_scans(run.validation["seriesuid"], trained, run.scans)
    return evaluate_froc(run.validation, run.annotations, run.excluded, seriesuids, bootstrap=bootstrap, seed=seed)


def candidates_by_diameter(validation: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Count the nodule candidates of each diameter group, and those with a probability strictly above a threshold.

    Returns:
        ``group`` (name and number), ``candidates``, ``found``, ``sensitivity``, ``interval`` (its 95 % Wilson
        interval), ``probability`` (median) and ``loss`` (mean); a row for each group that occurs.
    """
    nodules = validation[validation["class"]]
    return _by_diameter(
        nodules.assign(found=nodules["probability"] > threshold),
        candidates=("found", "size"),
        found=("found", "sum"),
        probability=("probability", "median"),
        loss=("loss", "mean"),
    )


def nodules_by_diameter(froc: FrocResult, threshold: float) -> pd.DataFrame:
    """Count the annotated nodules of each diameter group, and those that are found.

    Returns:
        ``group``, ``nodules``, ``with_candidate`` (any candidate hits it), ``found`` (one strictly above the threshold
        does), ``at_1`` and ``at_4`` (found at that number of false positives per scan), ``sensitivity``, ``interval``.
    """
    nodules = froc.matches.nodules
    found = {
        "with_candidate": nodules["probability"].notna(),
        "found": nodules["probability"] > threshold,
        "at_1": nodules["probability"] >= froc.threshold_at(1),
        "at_4": nodules["probability"] >= froc.threshold_at(4),
    }
    return _by_diameter(nodules.assign(**found), nodules=("found", "size"), **{name: (name, "sum") for name in found})


def _by_diameter(table: pd.DataFrame, **aggregations: tuple[str, str]) -> pd.DataFrame:
    names: Any = list(DIAMETER_GROUPS)
    group = pd.cut(table["diameter_mm"], [-math.inf, *DIAMETER_GROUPS.values()], labels=names, right=False)
    result = table.groupby(group, observed=True).agg(**aggregations)
    total = result.iloc[:, 0]
    pairs: dict[str, Any] = {
        "group": [(name, names.index(name)) for name in result.index],
        "interval": list(zip(*wilson_interval(result["found"], total), strict=True)),
    }
    return result.assign(sensitivity=result["found"] / total, **pairs)


def results_by_subset(run: Run, threshold: float) -> pd.DataFrame:
    """Compute the metrics of each LUNA16 subset in training and validation.

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


def worst_candidates(validation: pd.DataFrame, threshold: float, count: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pick at most ``count`` false negatives by rising, and false positives by falling probability."""
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
        Distance of the centers in mm and the finding's row, or None when there is none.
    """
    if findings is None or findings.empty:
        return None
    distances = np.linalg.norm(findings[COORDINATES].to_numpy() - point, axis=1)
    nearest = int(distances.argmin())
    return float(distances[nearest]), findings.iloc[nearest]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries by column."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
