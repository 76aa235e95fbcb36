"""Collecting what an evaluator says about scans, and writing it down."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import log_odds_of_logits
from luna_monai.predictions.explanation import ScanExplanation
from luna_monai.predictions.outputs import PLACEHOLDER, check_outputs, check_prediction, write_outputs
from luna_monai.predictions.result import COLUMNS, ModelFacts, ScanPrediction

if TYPE_CHECKING:
    from luna_monai.reports import PredictionReport

logger = logging.getLogger(__name__)


class ScanPredictions:
    """Makes a :class:`~luna_monai.predictions.ScanPrediction` of each scan that an evaluator has been through.

    Call :meth:`check` before the evaluator runs and :meth:`write` after it. Outputs with ``{seriesuid}`` in their names
    are written as soon as their scan is done, and outlive an interruption; the others hold all scans or are not there.

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
        self.predictions: list[ScanPrediction] = []
        self.failures: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator over a :class:`~luna_monai.data.ScanDataset`."""
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
        """Write the outputs.

        Raises:
            LunaError: when a scan could not be judged (after the others are written), or a file can't be written.
        """
        written = self._write(self.predictions, one_each=False) if self.predictions else []
        for what in (self.explanation, self.report):
            if what is not None:
                written += what.write()
        for path in written:
            logger.info("Written: %s", path.name)
        if self.failures and self.scans == 1:
            raise LunaError(self.failures[0])
        if self.failures:
            raise LunaError(
                f"{len(self.failures)} of {self.scans} scans could not be judged, the others are written; the first: "
                f"{self.failures[0]}"
                if self.predictions
                else f"none of {self.scans} scans could be judged; the first: {self.failures[0]}"
            )

    def _write(self, predictions: Sequence[ScanPrediction], *, one_each: bool) -> list[Path]:
        outputs = [path for path in self.outputs if (PLACEHOLDER in Path(path).name) == one_each]
        return write_outputs(outputs, predictions)

    def _start(self) -> None:
        self.predictions, self.failures = [], []

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        if "error" in batch:
            self._fail(batch["error"])
        else:
            self._add(batch, engine.state.output[CommonKeys.PRED])
        # The next scan is read while the engine still holds this one.
        engine.state.batch, engine.state.output = None, None

    def _fail(self, message: str) -> None:
        self.failures.append(message)
        if self.scans > 1:
            logger.error("Scan %d of %d: %s", len(self.predictions) + len(self.failures), self.scans, message)

    def _add(self, batch: dict[str, Any], logits: torch.Tensor) -> None:
        scan = batch["scan"]
        if any(prediction.seriesuid == scan.seriesuid for prediction in self.predictions):
            self._fail(f"{scan.path}: a second scan that is called {scan.seriesuid}")
            return
        probability = logits.softmax(dim=1)[:, 1].double().numpy()
        if not np.isfinite(probability).all():
            self._fail(f"{scan.path}: the network's output is no number; are these the right weights?")
            return
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
            dicom_files=scan.dicom_files,
            voxels_sha256=batch["voxels_sha256"],
        )
        try:
            check_prediction(self.outputs, prediction)
        except LunaError as error:
            self._fail(str(error))
            return
        heat_map = None
        if self.explanation is not None:
            heat_map = self.explanation.explain(prediction, batch["image"], batch["geometry"])
        if self.report is not None:
            self.report.add(prediction, batch["image"][0].numpy(), batch["geometry"], heat_map)
        self.predictions.append(prediction)
        for line in summary_lines(prediction):
            logger.info(line)
        for path in self._write([prediction], one_each=True):
            logger.info("Written: %s", path.name)


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
