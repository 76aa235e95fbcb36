"""A prediction as one HTML file that needs nothing else: the most probable candidates in pictures, all in a table."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.explanation import HeatMap
from luna_monai.predictions.result import ModelFacts, ScanPrediction
from luna_monai.reports import layout, overlay
from luna_monai.reports.atlas import ScanViewer
from luna_monai.reports.environment import render_page
from luna_monai.reports.layout import Case, Picture, Table
from luna_monai.reports.results import records
from luna_monai.scans.geometry import Geometry

CANDIDATES_IN_TABLE = 200
_OVERVIEW_PIXELS = 360
#: In HU: air is black and bone white on the projection of the whole scan.
_OVERVIEW_HU = (-1000.0, 250.0)
_VOXEL = ["index_z", "index_y", "index_x"]


@dataclass(frozen=True)
class Mark:
    """A candidate on the overview, in percent of its width and height from the upper left corner."""

    number: int
    left: float
    top: float


@dataclass(frozen=True)
class Overview:
    """The whole scan from the front, as an X-ray would show it, with the candidates that are in pictures."""

    source: str
    width: int
    height: int
    marks: list[Mark]


class PredictionReport:
    """Collects predictions, scan by scan, and writes them as one page.

    Only the pictures that the page shows in the end are kept, however many scans there are.

    Args:
        path: the HTML file.
        cases: so many of the most probable candidates, of all scans together, are shown in pictures.

    Raises:
        LunaError: when ``cases`` is negative.
    """

    def __init__(self, path: str | Path, cases: int = 12) -> None:
        if cases < 0:
            raise LunaError(f"the number of candidates in pictures must not be negative, found {cases}")
        self.path = Path(path)
        self.cases = cases
        # By the scan's number; the pictures by that and the candidate's rank in it.
        self._by_number: dict[int, ScanPrediction] = {}
        self._pictures: dict[tuple[int, int], list[Picture]] = {}
        self._overview: tuple[np.ndarray, Geometry] | None = None

    def check(self) -> None:
        """Check the name of the file before the work begins.

        Raises:
            LunaError: when its ending is not ``.html``, or a folder is in the way.
        """
        if self.path.suffix.lower() not in (".html", ".htm"):
            raise LunaError(f"{self.path}: the name of a report ends with .html")
        if self.path.is_dir():
            raise LunaError(f"{self.path}: a folder; the report is a file")

    @property
    def _predictions(self) -> list[ScanPrediction]:
        return [prediction for _, prediction in sorted(self._by_number.items())]

    def add(
        self,
        prediction: ScanPrediction,
        voxels: np.ndarray,
        geometry: Geometry,
        heat_map: HeatMap | None = None,
        number: int | None = None,
    ) -> None:
        """Take in what is shown of a scan.

        Args:
            prediction: of the scan.
            voxels: array (z, y, x), HU, as the network sees the scan: its axes turned to LPS.
            geometry: of ``voxels``.
            heat_map: of its most probable candidates, where it was made.
            number: of the scan, which gives it its place on the page; the next one when None.
        """
        scan = len(self._by_number) if number is None else number
        self._by_number[scan] = prediction
        viewer = ScanViewer(voxels, geometry)
        heat_viewer = None if heat_map is None else ScanViewer(heat_map.values, heat_map.geometry)
        shown = self._shown()
        for row in shown.loc[shown["scan"] == scan, "rank"]:
            center = prediction.candidates.loc[row, COORDINATES].to_numpy(dtype=float)
            heats = [""] * 3
            if heat_map is not None and heat_viewer is not None and row < heat_map.candidates:
                cuts = heat_viewer.cut(center, outside=0)
                heats = [layout.data_address(overlay.to_png(values / 255)) for values in cuts]
            self._pictures[scan, row] = [
                Picture(plane.name, layout.data_address(plane.png), heat=heat)
                for plane, heat in zip(viewer.planes(center), heats, strict=True)
            ]
        self._keep_shown(shown)
        self._overview = (_project(voxels), geometry) if len(self._by_number) == 1 else None

    def merge(self, other: PredictionReport) -> None:
        """Take in what another one has collected about other scans.

        Args:
            other: with as many pictures or more; its scans have other numbers.
        """
        self._by_number |= other._by_number
        self._pictures |= other._pictures
        if self._by_number:
            self._keep_shown(self._shown())
        # One of them may hold the only scan there is.
        self._overview = (self._overview or other._overview) if len(self._by_number) == 1 else None

    def remove(self, number: int) -> None:
        """Leave out a scan again. Candidates that come into its place on the page have no pictures.

        Args:
            number: of the scan.
        """
        del self._by_number[number]

    def _keep_shown(self, shown: pd.DataFrame) -> None:
        kept = set(zip(shown["scan"], shown["rank"], strict=True))
        self._pictures = {key: pictures for key, pictures in self._pictures.items() if key in kept}

    def write(self) -> list[Path]:
        """Write the page.

        Returns:
            The file.

        Raises:
            LunaError: when it can't be written.
        """
        if not self._predictions:
            return []
        write_bytes(self.path, self.to_html().encode())
        return [self.path]

    def to_html(self) -> str:
        """Make the page.

        Returns:
            An HTML document without any reference to something outside it, and without any path.
        """
        model = self._predictions[0].model
        several = len(self._predictions) > 1
        table = self._ranked(CANDIDATES_IN_TABLE)
        shown = self._shown()
        return render_page(
            "prediction.html",
            name=f"{len(self._predictions):,} scans" if several else self._predictions[0].seriesuid,
            facts=self._facts(model),
            verdict=_verdict(self._predictions, model),
            warnings=_warnings(self._predictions),
            tiles=_tiles(self._predictions, model),
            overview=self._draw_overview(shown),
            cases=[self._case(number, row, several) for number, row in enumerate(records(shown), start=1)],
            with_heat=sum(any(picture.heat for picture in pictures) for pictures in self._pictures.values()),
            legend=layout.data_address(overlay.legend_png()),
            total=sum(len(prediction.candidates) for prediction in self._predictions),
            candidates=_candidate_table(table, several),
            scans=_scan_table(self._predictions, model) if several else None,
            thresholds=_threshold_table(self._predictions, model),
            model=_model_facts(model),
        )

    def _ranked(self, count: int) -> pd.DataFrame:
        """The most probable candidates of all scans: their columns, the scan's number and the rank in it."""
        tables = [
            prediction.candidates.head(count).assign(scan=scan, rank=range(len(prediction.candidates.head(count))))
            for scan, prediction in sorted(self._by_number.items())
        ]
        table = pd.concat(tables, ignore_index=True)
        return table.sort_values("probability", ascending=False, kind="stable", ignore_index=True).head(count)

    def _shown(self) -> pd.DataFrame:
        return self._ranked(self.cases)

    def _facts(self, model: ModelFacts) -> list[tuple[str, str]]:
        total = sum(len(prediction.candidates) for prediction in self._predictions)
        kind = "proposed by luna-monai" if self._predictions[0].proposed else "given"
        facts = [("candidates", f"{total:,}, {kind}"), ("model", f"{model.name}, {model.sha256[:12]}")]
        if len(self._predictions) == 1:
            geometry = self._predictions[0].geometry
            facts.append(("scan", " × ".join(map(str, geometry.size)) + " voxels"))
            facts.append(("spacing", " × ".join(f"{value:.3g}" for value in geometry.spacing) + " mm"))
        return facts

    def _case(self, number: int, row: dict[str, Any], several: bool) -> Case:
        facts = [("probability", _in_words(row["probability"]))]
        if math.isfinite(row["probability_calibrated"]):
            facts.append(("calibrated", _in_words(row["probability_calibrated"])))
        facts.append(("voxel z, y, x", ", ".join(str(row[axis]) for axis in _VOXEL)))
        facts.append(("x, y, z in mm", layout.format_point((row[axis] for axis in COORDINATES), 1)))
        if several:
            facts.append(("scan", row["seriesuid"]))
        return Case(f"Candidate {number}", facts, self._pictures.get((row["scan"], row["rank"]), []))

    def _draw_overview(self, shown: pd.DataFrame) -> Overview | None:
        if self._overview is None:
            return None
        projection, geometry = self._overview
        depth, _, width = geometry.shape
        # Square pixels; the head is up.
        across, along = width * geometry.spacing[0], depth * geometry.spacing[2]
        pixels = (_OVERVIEW_PIXELS, max(1, round(_OVERVIEW_PIXELS * along / across)))
        buffer = io.BytesIO()
        Image.fromarray(projection[::-1]).resize(pixels).save(buffer, format="png")
        indices = (geometry.world_to_continuous_index(shown[COORDINATES].to_numpy(dtype=float)) + 0.5) / geometry.shape
        marks = [
            Mark(number, 100 * float(x), 100 * (1 - float(z)))
            for number, (z, _, x) in enumerate(indices.tolist(), start=1)
        ]
        marks.reverse()  # where they overlap, the more probable one lies on top
        return Overview(layout.data_address(buffer.getvalue()), *pixels, marks)


def _project(voxels: np.ndarray) -> np.ndarray:
    low, high = _OVERVIEW_HU
    # A slice at a time, so that no copy of the scan is made.
    means = np.stack([np.clip(plane, low, high).mean(axis=0, dtype=np.float32) for plane in voxels])
    darkest, brightest = np.percentile(means, (2, 99.5))
    return np.rint(255 * np.clip((means - darkest) / max(brightest - darkest, 1), 0, 1)).astype(np.uint8)


def _verdict(predictions: list[ScanPrediction], model: ModelFacts) -> str:
    total = sum(len(prediction.candidates) for prediction in predictions)
    if not total:
        return "There is no candidate to judge."
    best = max(prediction.candidates["probability"].max() for prediction in predictions)
    sentence = (
        f"The most probable of {total:,} candidate{'s' * (total > 1)} is a nodule with a probability of "
        f"{_in_words(best)}."
    )
    for wanted, threshold in list(model.thresholds.items())[:1]:
        above = sum(_above(predictions, threshold))
        sentence += (
            f" {above:,} {'is' if above == 1 else 'are'} above {layout.format_probability(threshold)}, which on the "
            f"validation scans meant {wanted}."
        )
    return sentence


def _above(predictions: list[ScanPrediction], threshold: float) -> list[int]:
    return [int((prediction.candidates["probability"] > threshold).sum()) for prediction in predictions]


def _warnings(predictions: list[ScanPrediction]) -> list[str]:
    counts = Counter(warning for prediction in predictions for warning in prediction.warnings)
    if len(predictions) == 1:
        return list(counts)
    return [f"{warning} ({count:,} of {len(predictions):,} scans)" for warning, count in counts.items()]


def _tiles(predictions: list[ScanPrediction], model: ModelFacts) -> list[tuple[str, str, str]]:
    probability = pd.concat([prediction.candidates["probability"] for prediction in predictions])
    tiles = [("Candidates", layout.format_count(len(probability)), "judged")]
    if len(predictions) > 1:
        tiles.insert(0, ("Scans", layout.format_count(len(predictions)), "judged"))
    if len(probability):
        tiles.append(("Highest", _in_words(probability.max()), "probability of a nodule"))
    tiles.append(("Above 0.5", layout.format_count((probability > 0.5).sum()), "candidates"))
    return tiles


def _candidate_table(table: pd.DataFrame, several: bool) -> Table:
    calibrated = table["probability_calibrated"].notna().any()
    columns = ["rank", "probability", *(["calibrated"] if calibrated else []), "world x, y, z, mm", "voxel z, y, x"]
    rows = []
    for number, row in enumerate(records(table), start=1):
        cells = [layout.count(number), _probability(row["probability"])]
        if calibrated:
            cells.append(_probability(row["probability_calibrated"]))
        cells.append(layout.text(layout.format_point((row[axis] for axis in COORDINATES), 1)))
        cells.append(layout.text(", ".join(str(row[axis]) for axis in _VOXEL)))
        if several:
            cells.append(layout.text(row["seriesuid"]))
        rows.append(cells)
    return Table("Candidates, most probable first", columns + ["scan"] * several, rows)


def _scan_table(predictions: list[ScanPrediction], model: ModelFacts) -> Table:
    wanted = list(model.thresholds.items())[:1]
    columns = ["scan", "candidates", "highest probability", *(f"above {value:.4g}" for _, value in wanted), "warnings"]
    rows = []
    for prediction in predictions:
        probability = prediction.candidates["probability"]
        highest = layout.text("none") if probability.empty else _probability(probability.max())
        rows.append(
            [
                layout.text(prediction.seriesuid),
                layout.count(len(probability)),
                highest,
                *(layout.count((probability > value).sum()) for _, value in wanted),
                layout.count(len(prediction.warnings)),
            ]
        )
    return Table("Scans", columns, rows)


def _threshold_table(predictions: list[ScanPrediction], model: ModelFacts) -> Table | None:
    if not model.thresholds:
        return None
    rows = [
        [layout.text(wanted), _probability(threshold), layout.count(sum(_above(predictions, threshold)))]
        for wanted, threshold in model.thresholds.items()
    ]
    note = "Thresholds of the probability as the network gives it, chosen on the model's validation scans."
    return Table("Candidates above the model's thresholds", ["wanted", "threshold", "candidates above"], rows, note)


def _model_facts(model: ModelFacts) -> list[tuple[str, str]]:
    facts = [("weights", model.name), ("SHA-256", model.sha256), ("bundle", model.version)]
    if model.calibration is None:
        facts.append(("calibration", "none is known for these weights"))
    return facts


def _in_words(probability: float) -> str:
    """A probability for reading, where the table has all of its digits."""
    if probability > 1 - 1e-4:
        return "over 0.9999"
    return "below 0.0001" if probability < 1e-4 else f"{probability:.4f}"


def _probability(value: float) -> layout.Cell:
    return layout.Cell(layout.format_probability(value), float(value))
