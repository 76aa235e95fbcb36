"""LUNA16's own score of each validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from ignite.engine import Engine, Events

from luna_monai.data.annotations import read_findings
from luna_monai.data.tables import COORDINATES
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, evaluate_froc

#: Names in ``engine.state.metrics``: the CPM, and the sensitivity at each of LUNA16's rates of false positives.
FROC_METRICS = ("cpm", *(f"sensitivity/{rate:g}" for rate in FALSE_POSITIVES_PER_SCAN))


class FrocMetrics:
    """Evaluates an epoch's records as LUNA16 does and adds ``FROC_METRICS`` to the engine's metrics.

    The nodules are those of the annotations, so one without a candidate counts as missed, and several candidates on
    one nodule count once. All metrics are NaN without an annotated nodule in these scans, or where the model gave a
    probability that is not finite.

    List it before the handlers that show or write metrics.

    Args:
        candidates: the candidates that are validated, indexed by row; their scans are the ones evaluated.
        dataset_dir: folder with ``annotations.csv`` and, if there is one, ``annotations_excluded.csv``.

    Raises:
        LunaError: when one of these tables is damaged, or the first is missing.
    """

    def __init__(self, candidates: pd.DataFrame, dataset_dir: str | Path) -> None:
        self.places = candidates[["seriesuid", *COORDINATES]]
        self.seriesuids = sorted(candidates["seriesuid"].unique())
        annotations, excluded = read_findings(dataset_dir)
        self.annotations = annotations[annotations["seriesuid"].isin(self.seriesuids)]
        self.excluded = None if excluded is None else excluded[excluded["seriesuid"].isin(self.seriesuids)]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator that has :class:`~luna_monai.training.metrics.CandidateMetrics`."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._complete)

    def _complete(self, engine: Engine) -> None:
        engine.state.metrics.update(self.evaluate(engine.state.records))

    def evaluate(self, records: pd.DataFrame) -> dict[str, float]:
        """Compute the metrics.

        Args:
            records: ``row`` and ``probability`` of each candidate.

        Returns:
            A value for each of ``FROC_METRICS``.
        """
        if not np.isfinite(records["probability"]).all():
            return dict.fromkeys(FROC_METRICS, float("nan"))
        submission = self.places.loc[records["row"]].assign(probability=records["probability"].to_numpy())
        result = evaluate_froc(submission, self.annotations, self.excluded, self.seriesuids)
        return dict(zip(FROC_METRICS, [result.cpm, *result.sensitivity.tolist()], strict=True))
