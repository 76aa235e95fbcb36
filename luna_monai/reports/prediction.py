"""A prediction as one HTML file that needs nothing else: findings in pictures, tables and on a map."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.outputs import check_writable
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.predictions.volumes import instance_of
from luna_monai.reports import layout, overlay
from luna_monai.reports.finding_pictures import FIELD_MM, Stack, finding_stacks
from luna_monai.reports.layout import render_page
from luna_monai.scans.geometry import Geometry

#: Rows of all tables together; findings that are shown have a row in any case.
ROWS = 400
_MAP_PIXELS = 360
#: Height of a number on the map, in pixels.
_LABEL_PIXELS = 17
#: In HU: air is black and bone white on the projection of the whole scan.
_MAP_HU = (-1000.0, 250.0)


@dataclass(frozen=True)
class Mark:
    """A finding on the map: its place and that of its number, in pixels from the upper left corner."""

    number: int
    x: float
    y: float
    label_x: float
    label_y: float


@dataclass(frozen=True)
class Map:
    """The whole scan from the front, as an X-ray would show it; numbers stand beside it."""

    source: str
    width: int
    height: int
    margin: int
    marks: list[Mark]


class PredictionPage:
    """Collects predictions, scan by scan, and writes them as one page.

    Args:
        path: the HTML file.
        max_pictures: how many of the most probable findings, of all scans together, are shown in pictures.

    Raises:
        LunaError: when ``max_pictures`` is negative.
    """

    def __init__(self, path: str | Path, max_pictures: int = 40) -> None:
        if max_pictures < 0:
            raise LunaError(f"report_findings must not be negative, found {max_pictures}")
        self.path = Path(path)
        self.max_pictures = max_pictures
        # By the number of the scan, the pictures by that and the rank of the finding.
        self._scans: dict[int, tuple[ScanPrediction, np.ndarray, Geometry]] = {}
        self._pictures: dict[tuple[int, int], tuple[float, list[Stack]]] = {}

    def check(self) -> None:
        """Check the name of the file before the work begins.

        Raises:
            LunaError: when its ending is not ``.html``, or it cannot be written.
        """
        if self.path.suffix.lower() not in (".html", ".htm"):
            raise LunaError(f"{self.path}: the name of a report ends with .html")
        check_writable(self.path)

    def add(
        self, number: int, prediction: ScanPrediction, voxels: np.ndarray, grid: Geometry, heat: np.ndarray | None
    ) -> None:
        """Take in what is shown of a scan.

        Args:
            number: of the scan, which gives it its place on the page.
            prediction: of the scan.
            voxels: (z, y, x) in HU, turned to LPS.
            grid: of ``voxels``.
            heat: attribution map of its most probable findings in ``grid``.
        """
        self._scans[number] = (prediction, _project(voxels), grid)
        for rank, finding in enumerate(prediction.findings[: prediction.shown]):
            lowest = min((one[0] for one in self._pictures.values()), default=0)
            if len(self._pictures) < self.max_pictures or finding.probability > lowest:
                self._pictures[number, rank] = (finding.probability, finding_stacks(voxels, grid, finding, heat))
                self._keep_best()

    def merge(self, other: PredictionPage) -> None:
        """Take in what another one has collected about other scans."""
        self._scans |= other._scans
        self._pictures |= other._pictures
        self._keep_best()

    def remove(self, number: int) -> None:
        """Leave out a scan again; others do not get its pictures."""
        del self._scans[number]
        self._pictures = {key: value for key, value in self._pictures.items() if key[0] != number}

    def _keep_best(self) -> None:
        # Of equal ones the earlier, whatever the order in which processes have found them.
        best = sorted(self._pictures.items(), key=lambda item: (-item[1][0], item[0]))
        self._pictures = dict(best[: self.max_pictures])

    def write(self) -> list[Path]:
        """Write the page, if there is a scan.

        Raises:
            LunaError: when it cannot be written.
        """
        if not self._scans:
            return []
        write_bytes(self.path, self.to_html().encode())
        return [self.path]

    def to_html(self) -> str:
        """Make the page: an HTML document without any reference to something outside it, and without any path."""
        scans = [self._scan(number) for number in sorted(self._scans)]
        model = next(iter(self._scans.values()))[0].model
        return render_page(
            "prediction.html",
            name=f"{len(scans):,} scans" if len(scans) > 1 else scans[0]["name"],
            scans=scans,
            model=model,
            prevalence=model.calibration and model.calibration.prevalence,
            field_mm=FIELD_MM,
            with_heat=any(stack.heat for _, stacks in self._pictures.values() for stack in stacks),
            legend=layout.data_address(overlay.legend_png()),
        )

    def _scan(self, number: int) -> dict[str, Any]:
        prediction, projection, grid = self._scans[number]
        shown = prediction.shown
        instance = functools.cache(instance_of)
        rows = describe_findings(prediction)[: max(shown, ROWS // len(self._scans))]
        for rank, row in enumerate(rows):
            row["id"], row["number"] = f"s{number + 1}f{rank + 1}", rank + 1
            row["slice"], row["instance"] = _slice_of(prediction, row["voxel"], instance)
            row["stacks"] = self._pictures.get((number, rank), (0, []))[1]
            positions = row["stacks"][0].positions if row["stacks"] else np.empty((0, 3))
            indices = prediction.geometry.world_to_index(positions).tolist()
            row["labels"] = [_slice_of(prediction, index, instance)[0] for index in indices]
        return {
            "id": f"scan{number + 1}",
            "name": prediction.seriesuid,
            "prediction": prediction,
            "rows": rows,
            "map": _draw_map(projection, grid, rows[:shown]) if any(row["stacks"] for row in rows) else None,
            "above": {
                wanted: (threshold, sum(one.probability > threshold for one in prediction.findings))
                for wanted, threshold in prediction.model.thresholds.items()
            },
        }


def _slice_of(
    prediction: ScanPrediction, voxel: list[int], instance: Callable[[Path], tuple[str, str]]
) -> tuple[str, str]:
    """Name a slice as viewers count it, in DICOM by its instance number, and give its SOP Instance UID."""
    axis = 2 - int(np.argmax(np.abs(np.asarray(prediction.geometry.direction)[2])))
    if not 0 <= voxel[axis] < prediction.geometry.shape[axis]:
        return "outside the scan", ""
    number, uid = f"slice {voxel[axis] + 1} of {prediction.geometry.shape[axis]}", ""
    if axis == 0 and prediction.dicom_files:
        instance_number, uid = instance(prediction.dicom_files[voxel[0]])
        number = f"instance {instance_number}" if instance_number else number
    return number, uid


def _project(voxels: np.ndarray) -> np.ndarray:
    low, high = _MAP_HU
    # A slice at a time, so that no copy of the scan is made.
    means = np.stack([np.clip(plane, low, high).mean(axis=0, dtype=np.float32) for plane in voxels])
    darkest, brightest = np.percentile(means, (2, 99.5))
    return np.rint(255 * np.clip((means - darkest) / max(brightest - darkest, 1), 0, 1)).astype(np.uint8)


def _draw_map(projection: np.ndarray, grid: Geometry, rows: list[dict[str, Any]]) -> Map:
    depth, _, width = grid.shape
    # Square pixels; the head is up.
    height = max(1, round(_MAP_PIXELS * depth * grid.spacing[2] / (width * grid.spacing[0])))
    buffer = io.BytesIO()
    Image.fromarray(projection[::-1]).resize((_MAP_PIXELS, height)).save(buffer, format="png")
    points = np.array([row["position"] for row in rows])
    z, _, x = ((grid.world_to_continuous_index(points) + 0.5) / grid.shape).T
    margin = 2 * _LABEL_PIXELS
    places = np.column_stack([margin + x * _MAP_PIXELS, (1 - z) * height])
    marks = []
    for right in (False, True):
        side = np.flatnonzero((x > 0.5) == right)
        order = side[np.argsort(places[side, 1], kind="stable")]
        label_x = _MAP_PIXELS + 1.5 * margin if right else margin / 2
        # From the top down, each number below the one before; then from the bottom up, so that none leaves the map.
        ys = places[order, 1].copy()
        gap = min(_LABEL_PIXELS, height / max(len(ys), 1))
        for n in range(len(ys)):
            ys[n] = max(ys[n], ys[n - 1] + gap if n else gap / 2)
        for n in range(len(ys) - 1, -1, -1):
            ys[n] = min(ys[n], ys[n + 1] - gap if n + 1 < len(ys) else height - gap / 2)
        for row, label_y in zip(order.tolist(), ys.tolist(), strict=True):
            marks.append(Mark(row + 1, float(places[row, 0]), float(places[row, 1]), label_x, label_y))
    return Map(layout.data_address(buffer.getvalue()), _MAP_PIXELS, height, margin, marks)
