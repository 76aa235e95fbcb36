"""Collecting what an evaluator says about scans, and writing it down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import log_odds_of_logits
from luna_monai.predictions.explanation import ScanExplanation
from luna_monai.predictions.outputs import PLACEHOLDER, check_outputs, check_prediction, write_outputs
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction
from luna_monai.training.processes import gather_objects, launched

if TYPE_CHECKING:
    from luna_monai.reports import PredictionReport

logger = logging.getLogger(__name__)


class ScanPredictions:
    """Makes a :class:`~luna_monai.predictions.ScanPrediction` of each scan that an evaluator has been through.

    Call :meth:`check` before the evaluator runs and :meth:`write` after it. Outputs with ``{seriesuid}`` in their names
    are written as soon as their scan is done, and outlive an interruption; the others hold all scans or are not there.
    Where the scans are divided among processes, the first one writes what holds all of them.

    Args:
        model: which model it is.
        outputs: files to write; their endings say what.
        scans: how many scans there are.
        proposed: whether the candidates are proposals rather than a given list.
        explanation: explains the candidates of a scan; nothing does when None.
        report: shows the scans in pictures; nothing does when None.
    """

    def __init__(
        self,
        model: ModelFacts,
        outputs: str | Sequence[str] | None,
        scans: int,
        proposed: bool,
        explanation: ScanExplanation | None = None,
        report: PredictionReport | None = None,
    ) -> None:
        self.model = model
        self.outputs = [outputs] if isinstance(outputs, str) else list(outputs or ())
        self.scans = scans
        self.proposed = proposed
        self.explanation = explanation
        self.report = report
        # By the scan's number: the prediction, or why there is none.
        self._results: dict[int, ScanPrediction | str] = {}

    @property
    def predictions(self) -> list[ScanPrediction]:
        """Predictions of the scans that could be judged, in the order of the scans."""
        return [result for _, result in sorted(self._results.items()) if isinstance(result, ScanPrediction)]

    @property
    def failures(self) -> list[str]:
        """Why the other scans could not be judged, in the order of the scans."""
        return [result for _, result in sorted(self._results.items()) if isinstance(result, str)]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator over a :class:`~luna_monai.predictions.ScanDataset`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def check(self) -> None:
        """Look at the names of the outputs.

        Raises:
            LunaError: when there is none, and as :func:`~luna_monai.predictions.outputs.check_outputs`.
        """
        if not self.outputs and self.explanation is None and self.report is None:
            raise LunaError("no output: name a file to write")
        check_outputs(self.outputs, self.scans)
        if self.explanation is not None:
            self.explanation.check(self.scans)
        if self.report is not None:
            self.report.check()

    def write(self) -> None:
        """Write the outputs. Of several processes all have to call this, and the first one writes.

        Raises:
            LunaError: when a scan could not be judged (after the others are written), or a file can't be written.
        """
        parts = gather_objects((self._results, self.report))
        if parts is None:
            return
        self._merge(parts[1:])
        written = self._write(self.predictions, one_each=False) if self.predictions else []
        for what in (self.explanation, self.report):
            if what is not None:
                written += what.write()
        for path in written:
            logger.info("Written: %s", path.name)
        failures = self.failures
        if failures and self.scans == 1:
            raise LunaError(failures[0])
        if failures:
            raise LunaError(
                f"{len(failures)} of {self.scans} scans could not be judged, the others are written; the first: "
                f"{failures[0]}"
                if self.predictions
                else f"none of {self.scans} scans could be judged; the first: {failures[0]}"
            )

    def _write(self, predictions: Sequence[ScanPrediction], *, one_each: bool) -> list[Path]:
        outputs = [path for path in self.outputs if (PLACEHOLDER in Path(path).name) == one_each]
        return write_outputs(outputs, predictions)

    def _start(self) -> None:
        self._results = {}

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        number = batch["number"]
        try:
            prediction = self._judge(batch, engine.state.output)
        except LunaError as error:
            self._add(number, str(error))
        else:
            heat_map = None
            if self.explanation is not None:
                heat_map = self.explanation.explain(prediction, batch["image"], batch["geometry"])
            if self.report is not None:
                self.report.add(prediction, batch["image"][0].numpy(), batch["geometry"], heat_map, number=number)
            self._add(number, prediction)
            for path in self._write([prediction], one_each=True):
                logger.info("Written: %s", path.name)
        # The next scan is read while the engine still holds this one.
        engine.state.batch, engine.state.output = None, None

    def _judge(self, batch: dict[str, Any], output: dict[str, Any]) -> ScanPrediction:
        if "error" in batch:
            raise LunaError(batch["error"])
        scan, logits = batch["header"], output[CommonKeys.PRED]
        if any(prediction.seriesuid == scan.seriesuid for prediction in self.predictions):
            raise LunaError(_second(scan.path, scan.seriesuid))
        probability = logits.softmax(dim=1)[:, 1].double().numpy()
        if not np.isfinite(probability).all():
            raise LunaError(f"{scan.path}: the network's output is no number; are these the right weights?")
        calibrated = np.full(len(logits), np.nan)
        if self.model.calibration is not None:
            calibrated = self.model.calibration.apply(log_odds_of_logits(logits.numpy()))
        places = pd.DataFrame(batch["points"].numpy(), columns=COORDINATES)
        voxels = pd.DataFrame(batch["index"].numpy(), columns=["index_z", "index_y", "index_x"])
        table = pd.concat([places, voxels], axis=1).assign(
            seriesuid=scan.seriesuid, probability=probability, probability_calibrated=calibrated
        )
        table = table.sort_values("probability", ascending=False, kind="stable", ignore_index=True)[list(COLUMNS)]
        prediction = ScanPrediction(
            seriesuid=scan.seriesuid,
            source=scan.path,
            geometry=scan.geometry,
            candidates=table,
            model=self.model,
            proposed=self.proposed,
            warnings=tuple(batch["warnings"]),
            dicom_files=scan.files if scan.format == "DICOM" else (),
            voxels_sha256=batch["voxels_sha256"],
        )
        check_prediction(self.outputs, prediction)
        return prediction

    def _add(self, number: int, result: ScanPrediction | str) -> None:
        self._results[number] = result
        if launched().rank > 0:
            return  # the first process says it, once it has what the others found
        if isinstance(result, ScanPrediction):
            for line in summary_lines(result):
                logger.info(line)
        elif self.scans > 1:
            logger.error("Scan %d of %d: %s", number + 1, self.scans, result)

    def _merge(self, others: Sequence[tuple[dict[int, ScanPrediction | str], PredictionReport | None]]) -> None:
        """Take in what the other processes found, as if this one had gone through all scans in their order."""
        found = dict(self._results)
        for results, report in others:
            found |= results
            if self.report is not None and report is not None:
                self.report.merge(report)
        first: dict[str, ScanPrediction] = {}
        for number, result in sorted(found.items()):
            if isinstance(result, ScanPrediction):
                kept = first.setdefault(result.seriesuid, result)
                if kept is not result:
                    # The file of the first one may be that of this one by now.
                    self._write([kept], one_each=True)
                    if self.report is not None:
                        self.report.remove(number)
                    result = _second(result.source, result.seriesuid)
            if result is not self._results.get(number):
                self._add(number, result)


def _second(path: Path, seriesuid: str) -> str:
    return f"{path}: a second scan that is called {seriesuid}"


def summary_lines(prediction: ScanPrediction) -> list[str]:
    """Say in words what was found in a scan.

    Args:
        prediction: of the scan.

    Returns:
        Lines of text: how many candidates, the most probable one, and each warning.
    """
    candidates = prediction.candidates
    kind = "proposed" if prediction.proposed else "given"
    line = f"{prediction.seriesuid}: {len(candidates)} candidates {kind}"
    if len(candidates):
        first = candidates.iloc[0]
        place = ", ".join(f"{first[axis]:.1f}" for axis in COORDINATES)
        line += f"; the most probable, {first['probability']:.3f}, at ({place}) mm LPS"
    return [line, *(f"{prediction.seriesuid}: {warning}" for warning in prediction.warnings)]
