"""A prediction as one HTML file that needs nothing else: findings in pictures, tables and on a map."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from luna_monai.files import write_bytes
from luna_monai.predictions.outputs import check_file
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.reports.pages import render_page
from luna_monai.reports.pictures import Stack, Volume, draw_stacks, heat_colors, image_address
from luna_monai.scans.geometry import Geometry

#: Rows of all tables together; findings that are shown have a row in any case.
ROWS = 400
_MAP_PIXELS = 360
#: Space for numbers on each side of the map.
_MARGIN = 34
#: In HU: air is black and bone white on the projection of the whole scan.
_MAP_HU = (-1000.0, 250.0)


class PredictionPage:
    """Collects predictions, scan by scan, and writes them as one page.

    Args:
        path: the HTML file.
        max_pictures: number of findings, the most probable ones of all scans together, that are shown in pictures.

    Raises:
        LunaError: when the name of the file has another ending, or it cannot be written.
    """

    def __init__(self, path: str | Path, max_pictures: int = 40) -> None:
        self.path = Path(path)
        check_file(self.path, (".html", ".htm"))
        self.max_pictures = max_pictures
        # By the number of the scan, the pictures by that and the rank of the finding.
        self._scans: dict[int, tuple[ScanPrediction, np.ndarray, Geometry]] = {}
        self._pictures: dict[tuple[int, int], tuple[float, list[Stack]]] = {}

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
                outlined: Volume | None = None
                if finding.outline is not None and finding.outline_start is not None:
                    x, y, z = grid.index_to_world(np.array([finding.outline_start]) - 1.0)[0].tolist()
                    padded = np.pad(finding.outline, 1).astype(np.float32)
                    outlined = padded, Geometry(padded.shape[::-1], grid.spacing, (x, y, z), grid.direction)
                stacks = draw_stacks(voxels, grid, finding.position, outlined, heat)
                self._pictures[number, rank] = (finding.probability, stacks)
                self._keep_best()

    def merge(self, other: PredictionPage) -> None:
        """Take in what another one has collected about other scans."""
        self._scans |= other._scans
        self._pictures |= other._pictures
        self._keep_best()

    def _keep_best(self) -> None:
        # Of equal ones the earlier, whatever the order in which processes have found them.
        best = sorted(self._pictures.items(), key=lambda item: (-item[1][0], item[0]))
        self._pictures = dict(best[: self.max_pictures])

    def write(self) -> None:
        """Write the page; at least one scan has been added.

        Raises:
            LunaError: when it cannot be written.
        """
        write_bytes(self.path, self.to_html().encode())

    def to_html(self) -> str:
        """Make the page: an HTML document without any reference to something outside it, and without any path."""
        scans = [self._scan(number) for number in sorted(self._scans)]
        return render_page(
            "prediction.html",
            brand="luna-monai prediction",
            name=f"{len(scans):,} scans" if len(scans) > 1 else scans[0]["name"],
            scans=scans,
            model=scans[0]["prediction"].model,
            with_heat=any(stack.heat for _, stacks in self._pictures.values() for stack in stacks),
            legend=image_address(heat_colors(np.tile(np.linspace(0, 1, 120), (10, 1)))),
        )

    def _scan(self, number: int) -> dict[str, Any]:
        prediction, projection, grid = self._scans[number]
        instance = functools.cache(_instance_of)
        rows = describe_findings(prediction)[: max(prediction.shown, ROWS // len(self._scans))]
        for rank, row in enumerate(rows):
            row["id"], row["number"] = f"s{number + 1}f{rank + 1}", rank + 1
            row["title"] = f"Finding {rank + 1}"
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
            "map": draw_map(projection, grid, rows[: prediction.shown]) if prediction.shown else None,
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


def _instance_of(path: Path) -> tuple[str, str]:
    """Read the Instance Number and the SOP Instance UID of a DICOM slice."""
    header = pydicom.dcmread(path, specific_tags=["InstanceNumber", "SOPInstanceUID"])
    return str(header.get("InstanceNumber") or ""), str(header.get("SOPInstanceUID") or "")


def _project(voxels: np.ndarray) -> np.ndarray:
    low, high = _MAP_HU
    # A slice at a time, so that no copy of the scan is made.
    means = np.stack([np.clip(plane, low, high).mean(axis=0, dtype=np.float32) for plane in voxels])
    darkest, brightest = np.percentile(means, (2, 99.5))
    return np.rint(255 * np.clip((means - darkest) / max(brightest - darkest, 1), 0, 1)).astype(np.uint8)


def draw_map(projection: np.ndarray, grid: Geometry, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw the whole scan from the front, as an X-ray would show it, with the numbers of findings beside it.

    Args:
        projection: uint8 (z, x), turned to LPS.
        grid: of the scan.
        rows: ``position`` of each finding, LPS mm.

    Returns:
        ``source`` (a ``data:`` address), ``width`` and ``height`` of the picture and ``margin`` for numbers on both
        sides, in pixels; ``marks``: number, x and y of each finding, and of its number, which overlaps no other.
    """
    depth, _, width = grid.shape
    # Square pixels; the head is up.
    height = max(1, round(_MAP_PIXELS * depth * grid.spacing[2] / (width * grid.spacing[0])))
    picture = np.asarray(Image.fromarray(projection[::-1]).resize((_MAP_PIXELS, height)))
    z, _, x = ((grid.world_to_continuous_index(np.array([row["position"] for row in rows])) + 0.5) / grid.shape).T
    places = np.column_stack([_MARGIN + x * _MAP_PIXELS, (1 - z) * height])
    marks = []
    for right in (False, True):
        side = np.flatnonzero((x > 0.5) == right)
        order = side[np.argsort(places[side, 1], kind="stable")].tolist()
        label_x = _MAP_PIXELS + 1.5 * _MARGIN if right else _MARGIN / 2
        for number, row in enumerate(order):  # at equal distances, in the order of their places
            marks.append((row + 1, *places[row].tolist(), label_x, (number + 0.5) * height / len(order)))
    return {
        "source": image_address(picture),
        "width": _MAP_PIXELS,
        "height": height,
        "margin": _MARGIN,
        "marks": marks,
    }
