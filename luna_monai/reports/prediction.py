"""The page of a prediction: a self-contained HTML file with pictures, a table and a map of the findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from luna_monai.detection.findings import SIZES, Finding
from luna_monai.detection.grid import grid_at, to_image
from luna_monai.files import check_file, write_bytes
from luna_monai.predictions.outputs import readable_table
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.reports.pages import render_page
from luna_monai.reports.pictures import draw_stacks, heat_colors, image_url
from luna_monai.scans.geometry import Geometry

#: Largest number of rows of all tables together. Findings that are shown always have a row.
ROWS = 400
#: Width of the map of a scan, and of the margins for numbers on each side of it, pixels.
MAP_WIDTH, MARGIN = 360, 34
#: Range that the scan is clipped to before its projection, HU.
_MAP_HU = (-1000.0, 250.0)


class PredictionPage:
    """Collects the predictions of scans, and writes them to one page.

    Args:
        path: the HTML file.
        max_pictures: largest number of findings with pictures, on the whole page. The most probable findings of all
            scans get pictures.

    Raises:
        LunaError: if the file name has another ending, or the file cannot be written.
    """

    def __init__(self, path: str | Path, max_pictures: int = 40) -> None:
        self.path = Path(path)
        check_file(self.path, (".html", ".htm"))
        self.max_pictures = max_pictures
        # Scans by number; pictures by number of the scan and rank of the finding.
        self._scans: dict[int, tuple[ScanPrediction, dict[str, Any]]] = {}
        self._pictures: dict[tuple[int, int], tuple[float, list[dict[str, Any]]]] = {}

    def add(
        self, number: int, prediction: ScanPrediction, voxels: np.ndarray, grid: Geometry, heat: np.ndarray | None
    ) -> None:
        """Add a scan.

        Args:
            number: number of the scan, which determines its order on the page.
            prediction: prediction for the scan.
            voxels: HU (z, y, x), oriented to LPS.
            grid: geometry of ``voxels``.
            heat: attribution map of the most probable findings in ``grid``, uint8 (z, y, x); None for no map.
        """
        findings = prediction.findings[: prediction.shown]
        self._scans[number] = prediction, draw_map(voxels, grid, [finding.position for finding in findings])
        scan, heat_map = to_image(voxels, grid), None if heat is None else to_image(heat, grid)
        for rank, finding in enumerate(findings):
            lowest = min((probability for probability, _ in self._pictures.values()), default=0)
            if len(self._pictures) < self.max_pictures or finding.probability > lowest:
                stacks = draw_stacks(scan, finding.position, _outline_of(finding, grid), heat_map)
                self._pictures[number, rank] = (finding.probability, stacks)
                self._keep_best()

    def merge(self, other: PredictionPage) -> None:
        """Add the scans of another page."""
        self._scans |= other._scans
        self._pictures |= other._pictures
        self._keep_best()

    def _keep_best(self) -> None:
        # Findings of equal probability are ordered by scan and rank, so that the number of processes has no effect.
        best = sorted(self._pictures.items(), key=lambda item: (-item[1][0], item[0]))
        self._pictures = dict(best[: self.max_pictures])

    def write(self) -> None:
        """Write the page. At least one scan must have been added.

        Raises:
            LunaError: if the file cannot be written.
        """
        write_bytes(self.path, self.to_html().encode(errors="replace"))

    def to_html(self) -> str:
        """Render the page: a self-contained HTML document without paths of files."""
        scans: list[dict[str, Any]] = [
            {"id": f"scan{number + 1}", "prediction": one, "rows": self._rows(number, one), "map": scan_map}
            for number, (one, scan_map) in sorted(self._scans.items())
        ]
        return render_page(
            "prediction.html",
            brand="luna-monai prediction",
            name=f"{len(scans):,} scans" if len(scans) > 1 else scans[0]["prediction"].seriesuid,
            scans=scans,
            with_heat=any(stack["heat"] for _, stacks in self._pictures.values() for stack in stacks),
            legend=image_url(heat_colors(np.tile(np.linspace(0, 1, 120), (10, 1)))),
        )

    def _rows(self, number: int, prediction: ScanPrediction) -> list[dict[str, Any]]:
        """Describe the findings of a scan as formatted values, with pictures for those that are shown."""
        rows = describe_findings(prediction)[: max(prediction.shown, ROWS // len(self._scans))]
        lines = readable_table(prediction, len(rows)).to_csv(index=False).splitlines()
        axis, slices = prediction.axial_slices
        names = [f"instance {number}" if uid else f"slice {number} of {len(slices)}" for number, uid in slices]
        for rank, row in enumerate(rows):
            row |= {name: f"{row[name]:,.{digits}f}" for name, digits in SIZES.items() if row[name] is not None}
            row["number"], row["id"] = rank + 1, f"s{number + 1}f{rank + 1}"
            row["csv_header"], row["csv"] = lines[0], lines[rank + 1]
            place = row["voxel"][axis]
            row["slice_name"], (row["slice"], row["instance"]) = names[place], slices[place]
            row["stacks"] = self._pictures.get((number, rank), (0, []))[1]
            for stack in row["stacks"][:1]:
                places = prediction.geometry.world_to_index(stack["positions"])[:, axis].tolist()
                stack["labels"] = [names[at] if at in range(len(names)) else "outside the scan" for at in places]
        return rows


def _outline_of(finding: Finding, grid: Geometry) -> sitk.Image | None:
    """Make an image of the outline of a finding with a margin of one voxel; None without an outline."""
    if finding.outline is None or finding.outline_start is None:
        return None
    mask = np.pad(finding.outline, 1).astype(np.uint8)
    return to_image(mask, grid_at(grid, np.array(finding.outline_start) - 1, mask.shape))


def draw_map(voxels: np.ndarray, grid: Geometry, positions: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Draw the frontal projection of a scan, similar to a chest X-ray, with the numbers of the findings beside it.

    Args:
        voxels: HU (z, y, x), oriented to LPS.
        grid: geometry of ``voxels``.
        positions: positions of the findings, x, y, z in LPS mm.

    Returns:
        ``source``, the picture as a ``data:`` URL; ``width``, ``height`` and ``margin`` in pixels; and ``marks``:
        for each finding its number, the x and y of the finding, and the x and y of the number in the margin, in pixels.
    """
    # One slice at a time, so that the scan is not copied.
    means = np.stack([np.clip(plane, *_MAP_HU).mean(axis=0, dtype=np.float32) for plane in voxels])
    darkest, brightest = np.percentile(means, (2, 99.5))
    gray = np.rint(255 * np.clip((means - darkest) / max(brightest - darkest, 1), 0, 1)).astype(np.uint8)
    height = MAP_WIDTH * len(gray) * grid.spacing[2] / (gray.shape[1] * grid.spacing[0])
    z, _, x = ((grid.world_to_continuous_index(np.array(positions)) + 0.5) / grid.shape).T
    x, y, marks = x * MAP_WIDTH, (1 - z) * height, []  # superior is up
    for side, label_x in ((x <= MAP_WIDTH / 2, -MARGIN / 2), (x > MAP_WIDTH / 2, MAP_WIDTH + MARGIN / 2)):
        order = np.flatnonzero(side)[np.argsort(y[side], kind="stable")].tolist()
        for place, number in enumerate(order):  # evenly spaced labels, from top to bottom
            marks.append((number + 1, x[number], y[number], label_x, (place + 0.5) * height / len(order)))
    return {"source": image_url(gray[::-1]), "width": MAP_WIDTH, "margin": MARGIN, "height": height, "marks": marks}
