"""Collects the predictions of an evaluator for whole scans, and writes them to files."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from luna_monai.data.tables import ANNOTATIONS, COORDINATES, EXCLUDED, read_findings
from luna_monai.detection.findings import MAX_OUTLINES, MIN_PROBABILITY, find_findings, findings_table
from luna_monai.errors import LunaError
from luna_monai.files import SUBMISSION_COLUMNS, check_file, write_json
from luna_monai.metrics.calibration import log_odds_of_logits
from luna_monai.metrics.froc import evaluate_froc
from luna_monai.predictions.heat_map import ScanExplanation
from luna_monai.predictions.outputs import PLACEHOLDER, check_outputs, for_scan, is_dicom, is_of_one_scan, write_outputs
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction
from luna_monai.predictions.scan_dataset import ScanDataset
from luna_monai.scans import ScanHeader, ScanSource, read_header
from luna_monai.scans.sources import is_ct, scan_name
from luna_monai.training.processes import gather_objects, launched

logger = logging.getLogger(__name__)

#: Default threshold for findings that are shown, if the model has no operating points.
DEFAULT_THRESHOLD = 0.5
#: Operating point of the default threshold, if the model has operating points.
OPERATING_POINT = "4 false positives per scan"


class DatasetFroc:
    """Evaluates candidates and findings by LUNA16's rules, and writes the FROC of both to a JSON file.

    All classified scans are evaluated, with or without findings. A finding hits a nodule if the distance of their
    centers is below the radius of the nodule.

    Args:
        path: JSON file to write.
        dataset_dir: folder with ``annotations.csv`` and, if there is one, ``annotations_excluded.csv``.

    Raises:
        LunaError: if one of these tables is damaged, ``annotations.csv`` is missing, or the file cannot be written.
    """

    def __init__(self, path: str | Path, dataset_dir: str | Path) -> None:
        self.path = Path(path)
        check_file(self.path, [".json"])
        self.annotations, self.excluded = read_findings(dataset_dir)
        self.tables = [Path(dataset_dir, ANNOTATIONS), Path(dataset_dir, EXCLUDED)]

    def write(self, predictions: Sequence[ScanPrediction]) -> None:
        """Write the evaluation of the scans, and log a summary."""
        results, tables = {}, {"candidates": [one.candidates for one in predictions]}
        tables["findings"] = [findings_table(one.findings, one.seriesuid) for one in predictions]
        for name, parts in tables.items():
            submission = pd.concat(parts)[list(SUBMISSION_COLUMNS)]
            result = evaluate_froc(submission, self.annotations, self.excluded, [one.seriesuid for one in predictions])
            logger.info("FROC of the %s: %s", name, result.summary())
            results[name] = result.to_dict()
        write_json(self.path, results)


@dataclass(eq=False)
class ScanPredictions:
    """Makes a :class:`~luna_monai.predictions.ScanPrediction` of each scan of an evaluator.

    Call :meth:`check` before the evaluator runs and :meth:`write` after it. Outputs of one scan, which have
    ``{seriesuid}`` in their names or a format for one scan, are written as soon as the scan is classified. All other
    outputs contain all scans. If the scans are divided among processes, the first process writes these.

    Args:
        model: facts about the model.
        outputs: name or names of output files, relative to ``output_dir``. The ending is the format.
        dataset: the scans.
        proposed: True if the candidates are proposals, False if they come from a list.
        threshold: lowest probability of findings that are shown. None for the model's threshold for 4 false positives
            per scan, or 0.5 if it is not known.
        max_findings: largest number of findings of a scan that are shown.
        output_dir: folder of the files of ``outputs``.
        anonymous: leave the patient's tags empty in DICOM objects.
        explanation: writes the attribution map of a scan; None for no map.
        page: a :class:`~luna_monai.reports.PredictionPage`; None for no page.
        froc: a :class:`~luna_monai.predictions.DatasetFroc`; None for no evaluation.
        inputs: other files that the command reads, which no output may replace.
    """

    model: ModelFacts
    outputs: str | Sequence[str] | None
    dataset: ScanDataset
    proposed: bool
    threshold: float | None = None
    max_findings: int = 20
    output_dir: str | Path = "."
    anonymous: bool = False
    explanation: ScanExplanation | None = None
    page: Any = None
    froc: DatasetFroc | None = None
    inputs: Sequence[str | Path | None] = ()

    def __post_init__(self) -> None:
        names = [self.outputs] if isinstance(self.outputs, str) else self.outputs or ()
        self._paths = [Path(self.output_dir) / name for name in names]
        default = self.model.thresholds.get(OPERATING_POINT, DEFAULT_THRESHOLD)
        self._threshold = default if self.threshold is None else self.threshold
        # By the number of the scan: the prediction, or an error message.
        self._results: dict[int, ScanPrediction | str] = {}
        self._problems: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator over a :class:`~luna_monai.predictions.ScanDataset`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def check(self) -> None:
        """Check the outputs before the scans are read.

        Raises:
            LunaError: if there is no output, if an output is also an input or another output, if two scans have the
                same name, or if :func:`~luna_monai.predictions.outputs.check_outputs` raises it.
        """
        check_outputs(self._paths, len(self.dataset))
        with_dicom, scans = any(map(is_dicom, self._paths)), self.dataset.data
        if with_dicom and isinstance(scans[0], ScanSource) and len(scans) == 1:
            scans = self.dataset.data = [read_header(scans[0])]  # headers of several series would take too much memory
        # The name of other DICOM series is in their header, which is not read yet.
        names = [scan.seriesuid or scan_name(scan.path) for scan in scans if scan.seriesuid or scan.path.is_file()]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise LunaError(f"two scans have the name {twice[0]}; give them different names in a column 'seriesuid'")
        others = [*(path for path in self._paths if not is_dicom(path)), self.explanation, self.page, self.froc]
        if not with_dicom and not any(others):
            raise LunaError("no output file; give at least one, for example --output findings.csv")
        if with_dicom and (len(scans) == 1 or not any(scan.path.is_dir() for scan in scans)):
            from luna_monai.predictions.dicom_objects import slice_tags

            try:
                slice_tags(scans[0])
            except LunaError as error:
                if not any(others):
                    raise
                logger.error("No DICOM object can be written: %s", error)
        outputs = self._paths + [Path(part.path) for part in (self.explanation, self.page, self.froc) if part]
        for path in outputs:
            if PLACEHOLDER in str(path if path not in self._paths else path.parent):
                raise LunaError(f"{path}: {PLACEHOLDER} is replaced only in the names of files of --output")
        files = [for_scan(path, name) for path in outputs for name in (names if PLACEHOLDER in path.name else [""])]
        for file, count in Counter(map(Path.resolve, files)).items():
            if count > 1:
                raise LunaError(f"{file}: {count} outputs have this name; give them different names")
        inputs = [*self.inputs, *(scan.path for scan in scans), *(self.froc.tables if self.froc else ())]
        read = {Path(one).resolve() for one in inputs if one}
        for path in filter(Path.exists, files):
            if path.resolve() in read or is_ct(path):
                raise LunaError(f"{path}: an output would replace this file, which is read; choose another name")
        if self.explanation is not None and len(scans) != 1:
            raise LunaError(f"{self.explanation.path}: --explain supports one scan, found {len(scans)}")

    def write(self) -> None:
        """Write the outputs that contain all scans. All processes must call this method; the first one writes.

        Raises:
            LunaError: if a scan could not be classified or a file could not be written. All others are written.
        """
        parts = gather_objects((self._results, self.page, self._problems))
        if parts is None:
            return
        for results, page, problems in parts[1:]:
            for number, result in sorted(results.items()):
                self._add(number, result)
            if self.page is not None:
                self.page.merge(page)
            self._problems += problems
        results = [self._results[number] for number in sorted(self._results)]
        predictions = [result for result in results if isinstance(result, ScanPrediction)]
        if predictions:
            self._write(predictions)
            if self.page is not None:
                self.page.write()
                logger.info("Written: %s", self.page.path)
            if self.froc is not None:
                self.froc.write(predictions)
                logger.info("Written: %s", self.froc.path)
        problems = [result for result in results if isinstance(result, str)]
        if problems and len(self.dataset) > 1:
            count = f"{len(problems)} of {len(self.dataset)} scans could not be classified"
            rest = "the others are written" if predictions else "nothing is written"
            raise LunaError(f"{count}, {rest}; first error: {problems[0]}")
        for problem in problems or self._problems:
            raise LunaError(problem)

    def _write(self, predictions: Sequence[ScanPrediction], header: ScanHeader | None = None) -> None:
        """Write the outputs of one scan, whose header is given, or the outputs of all scans."""
        paths = [path for path in self._paths if is_of_one_scan(path) == (header is not None)]
        segmented = any(path.name.lower().endswith(".seg.dcm") for path in self._paths)
        options = {"anonymous": self.anonymous, "segmented": segmented}
        written, problems = write_outputs(paths, predictions, header=header, **options)
        for path in written:
            logger.info("Written: %s", path)
        self._problems += problems
        for problem in problems if len(self.dataset) > 1 else ():
            logger.error("%s", problem)

    def _collect(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        # Free the memory of this scan: the loader is already reading the next one.
        engine.state.batch, engine.state.output = None, None
        number = batch["number"]
        if "error" in batch:
            self._add(number, batch["error"])
        elif not output[CommonKeys.PRED].isfinite().all():
            self._add(number, f"{batch['header'].path}: the network's output is NaN; check the weights")
        else:
            prediction, heat = self._predict(batch, output[CommonKeys.PRED]), None
            if self.explanation is not None:
                heat = self.explanation(prediction, batch["image"], batch["geometry"])
                logger.info("Written: %s", self.explanation.path)
            self._add(number, prediction)
            if self._results[number] is prediction:
                if self.page is not None:
                    self.page.add(number, prediction, batch["image"][0].numpy(), batch["geometry"], heat)
                self._write([prediction], batch["header"])

    def _predict(self, batch: dict[str, Any], logits: torch.Tensor) -> ScanPrediction:
        scan, voxels, grid = batch["header"], batch["image"][0].numpy(), batch["geometry"]
        table = pd.DataFrame(batch["points"].numpy(), columns=COORDINATES).assign(seriesuid=scan.seriesuid)
        table["probability"], table["probability_calibrated"] = logits.softmax(dim=1)[:, 1].double().numpy(), np.nan
        if self.model.calibration is not None:
            table["probability_calibrated"] = self.model.calibration.apply(log_odds_of_logits(logits.numpy()))
        table = table.sort_values("probability", ascending=False, kind="stable", ignore_index=True)[list(COLUMNS)]
        probable = int((table["probability"] >= self._threshold).sum())
        # An outline is computed for all findings that can be shown.
        most, lowest = max(MAX_OUTLINES, min(self.max_findings, probable)), min(MIN_PROBABILITY, self._threshold)
        findings = find_findings(voxels, grid, table[COORDINATES], table["probability"], batch["lungs"], most, lowest)
        return ScanPrediction(
            seriesuid=scan.seriesuid,
            geometry=scan.geometry,
            candidates=table,
            model=self.model,
            proposed=self.proposed,
            findings=tuple(findings),
            threshold=self._threshold,
            shown=min(self.max_findings, sum(finding.probability >= self._threshold for finding in findings)),
            grid=grid,
            warnings=tuple(batch["warnings"]),
            instances=scan.instances,
            voxels_sha256=batch["voxels_sha256"],
        )

    def _add(self, number: int, result: ScanPrediction | str) -> None:
        if isinstance(result, ScanPrediction) and result.seriesuid:
            others = [other for other in self._results.values() if isinstance(other, ScanPrediction)]
            if any(other.seriesuid == result.seriesuid for other in others):
                result = f"two scans have the series UID {result.seriesuid}; remove one of them"
        self._results[number] = result
        if launched().rank > 0:
            return  # the first process logs the results of all processes
        if isinstance(result, ScanPrediction):
            kind = "proposed" if result.proposed else "given"
            line = f"{len(result.candidates)} candidates {kind}, {len(result.findings)} findings"
            if result.findings:
                line += f", {result.above_threshold} at or above {result.threshold:.3f}, {result.shown} shown"
                line += f"; highest probability {result.findings[0].probability:.3f}"
            for text in (line, *result.warnings):
                logger.info("%s: %s", result.seriesuid, text)
        elif len(self.dataset) > 1:
            logger.error("Scan %d of %d: %s", number + 1, len(self.dataset), result)
