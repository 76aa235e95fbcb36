"""LUNA16's FROC of the predictions for a dataset whose nodules are annotated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from luna_monai.data.tables import read_findings
from luna_monai.detection.findings import findings_table
from luna_monai.files import write_json
from luna_monai.metrics.froc import FROC_COLUMNS, FrocResult, evaluate_froc
from luna_monai.predictions.outputs import check_file
from luna_monai.predictions.result import ScanPrediction


class DatasetFroc:
    """Evaluates predictions by LUNA16's rules and writes the numbers: of candidates, as LUNA16 asks, and of findings.

    All scans that were classified count, with or without findings. A finding hits a nodule when its center of mass is
    nearer to the nodule's center than the nodule's radius.

    Args:
        path: JSON file to write.
        dataset_dir: folder with ``annotations.csv`` and, if there is one, ``annotations_excluded.csv``.

    Raises:
        LunaError: when one of these tables is damaged, the first is missing, or the file cannot be written.
    """

    def __init__(self, path: str | Path, dataset_dir: str | Path) -> None:
        self.path = Path(path)
        check_file(self.path, [".json"])
        self.annotations, self.excluded = read_findings(dataset_dir)

    def write(self, predictions: Sequence[ScanPrediction]) -> list[str]:
        """Write the evaluation.

        Args:
            predictions: of the scans.

        Returns:
            The main numbers in words.
        """
        tables = {
            "candidates": [one.candidates for one in predictions],
            "findings": [findings_table(one.findings, one.seriesuid) for one in predictions],
        }
        results = {name: self._evaluate(parts, predictions) for name, parts in tables.items()}
        write_json(self.path, {name: result.to_dict() for name, result in results.items()})
        return [f"FROC of the {name}: {result.summary()}" for name, result in results.items()]

    def _evaluate(self, tables: Sequence[pd.DataFrame], predictions: Sequence[ScanPrediction]) -> FrocResult:
        submission = pd.concat([table[FROC_COLUMNS] for table in tables], ignore_index=True)
        return evaluate_froc(submission, self.annotations, self.excluded, [one.seriesuid for one in predictions])
