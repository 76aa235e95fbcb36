"""The candidates that a model got wrong, in pictures and with what is known about each."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.reports.pages import Case, show
from luna_monai.reports.pictures import ball, draw_stacks
from luna_monai.reports.run import Run
from luna_monai.scans.scan import Scan, read_scan

logger = logging.getLogger(__name__)


def worst_candidates(validation: pd.DataFrame, threshold: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give false negatives by rising, and false positives by falling probability."""
    called = validation["probability"] > threshold
    missed = validation[validation["class"] & ~called].sort_values("probability", kind="stable")
    alarms = validation[~validation["class"] & called].sort_values("probability", ascending=False, kind="stable")
    return missed, alarms


def picture(candidates: pd.DataFrame, run: Run) -> list[Case]:
    """Describe and picture rows of the validation predictions, in their order; one CT at a time is in memory."""
    cases = {}
    candidates = candidates.reset_index(drop=True)
    for seriesuid, of_scan in candidates.groupby("seriesuid"):
        scan, problem = _open(str(seriesuid), run)
        for number, row in of_scan.iterrows():
            cases[number] = _case(f"Candidate {row['row']}", row, run, scan, problem)
    return [cases[number] for number in candidates.index]


def _case(title: str, row: pd.Series, run: Run, scan: Scan | None, problem: str) -> Case:
    center = row[COORDINATES].to_numpy(dtype=float)
    nearest, outlined = "not known", None
    if run.annotations is not None:
        nodules = run.annotations[run.annotations["seriesuid"] == row["seriesuid"]]
        distances = pd.Series(np.linalg.norm(nodules[COORDINATES] - center, axis=1), index=nodules.index)
        nearest = "none in this scan"
        if len(nodules):
            nodule = nodules.loc[distances.idxmin()]
            nearest = f"{distances.min():.1f} mm away, {nodule['diameter_mm']:.1f} mm wide"
            outlined = ball(nodule[COORDINATES], max(nodule["diameter_mm"], 0))
    facts = {
        "probability": show(row["probability"], "probability"),
        "loss": f"{row['loss']:.3f}",
        "nearest nodule": nearest,
        "position": ", ".join(f"{value:.1f}" for value in center) + " mm",
    }
    if scan is None:
        return Case(title, facts | {"pictures": problem, "series": row["seriesuid"]}, [], [])
    facts["voxel z, y, x"] = ", ".join(map(str, scan.geometry.world_to_index(center[None])[0]))
    stacks = draw_stacks(scan.voxels, scan.geometry, center, outlined)
    slices = scan.geometry.world_to_index(stacks[0].positions)[:, 0]
    labels = [f"slice {index + 1} of {scan.geometry.shape[0]}" for index in slices]
    return Case(title, facts | {"series": row["seriesuid"]}, stacks, labels)


def _open(seriesuid: str, run: Run) -> tuple[Scan | None, str]:
    if seriesuid not in run.scans:
        return None, "none: the CT is not on disk"
    try:
        return read_scan(run.scans[seriesuid], orientation=None), ""
    except LunaError as error:
        logger.warning("no picture: %s", error)
        return None, "none: the CT cannot be read"
