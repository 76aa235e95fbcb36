"""``luna-monai evaluate``: metrics, calibration and thresholds of given weights."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from luna_monai.apps.bundle_app import BundleApp, run_and_weights
from luna_monai.errors import LunaError, reason_of
from luna_monai.files import write_json
from luna_monai.literals import literal
from luna_monai.share import bundle_dir
from luna_monai.workflow import existing, run_workflow

logger = logging.getLogger(__name__)


class LunaEvaluateApp(BundleApp):
    """Evaluate weights on the validation part of a dataset.

    The results are predictions, metrics, LUNA16's FROC, calibration, and thresholds for a wanted sensitivity or number
    of false positives per scan.
    """

    name = "evaluate"
    settings = (*BundleApp.settings, "num_workers", "fold")
    together = "divide the candidates among"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            type=existing,
            metavar="RUN",
            help="folder of a run, whose configuration is used too, except code that the bundle does not have; or a "
            "file of weights: model.pt, checkpoint.pt, a .state of the book, or an exported .ts or .onnx",
        )
        super().add_arguments(parser)
        parser.add_argument(
            "--output-dir",
            help="folder of the results (default: RUN/evaluation, or for a file data-unversioned/evaluation/NAME-HASH)",
        )
        parser.add_argument("--all-scans", action="store_true", help="evaluate all candidates, not the validation part")
        parser.add_argument(
            "--metadata",
            type=existing,
            metavar="JSON",
            help="also store calibration, thresholds and the SHA-256 of the weights in this metadata.json of a bundle",
        )

    def run(self) -> None:
        """Evaluate."""
        metadata = _read_json(self.cli_args.metadata) if self.cli_args.metadata else None
        run, weights = run_and_weights(Path(self.cli_args.run_or_weights))
        given = self.given() | {"weights": literal(str(weights.resolve()))}
        if run is not None:
            given.setdefault("output_dir", literal(str(run / "evaluation")))
        if self.cli_args.all_scans:
            # Both parts are all candidates, which may be of a single subset.
            given |= {"evaluated": "@candidates", "split": ["@candidates", "@candidates"]}
        workflow = self.load("evaluating", given, bundle_dir() / "configs" / "evaluate.yaml", run=run)
        run_workflow(workflow)
        from luna_monai.training.processes import launched

        if metadata is not None and launched().rank == 0:
            folder = Path(workflow.parser.get_parsed_content("output_dir"))
            evaluated, found = _read_json(folder / "metrics.json"), _read_json(folder / "calibration.json")
            metadata["operating_points"] = {
                "weights": Path(evaluated["weights"]).name,
                "weights_sha256": evaluated["weights_sha256"],
                **{key: found[key] for key in ("fitted_on", "calibration", "thresholds")},
            }
            write_json(self.cli_args.metadata, metadata)
            logger.info("Calibration and thresholds stored in %s", self.cli_args.metadata)


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LunaError(f"{path}: cannot be read as a JSON object ({reason_of(error)})") from None
