"""``luna-monai evaluate``: metrics, calibration and thresholds for given weights."""

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

    The results are predictions, metrics, LUNA16's FROC, a calibration, and thresholds for given sensitivities and
    numbers of false positives per scan.
    """

    name = "evaluate"
    distributed_help = "divide the candidates among"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            type=existing,
            metavar="RUN",
            help="run folder, whose configuration is used without code that is not part of luna-monai; or a weights "
            "file: model.pt, checkpoint.pt, a .state file of the book, or an exported .ts or .onnx",
        )
        super().add_arguments(parser)
        parser.add_argument(
            "--output-dir",
            help="folder of the results (default: RUN/evaluation; data-unversioned/evaluation/NAME-HASH for a file)",
        )
        parser.add_argument("--all-scans", action="store_true", help="evaluate all scans, not only the validation part")
        parser.add_argument(
            "--metadata",
            type=existing,
            metavar="JSON",
            help="metadata.json of a bundle, in which calibration, thresholds and SHA-256 of the weights are stored",
        )

    def run(self) -> None:
        """Evaluate the weights."""
        metadata = _read_json(self.cli_args.metadata) if self.cli_args.metadata else None
        run, weights = run_and_weights(Path(self.cli_args.run_or_weights))
        given = self.given() | {"weights": literal(str(weights.resolve()))}
        if run is not None:
            given.setdefault("output_dir", literal(str(run / "evaluation")))
        if self.cli_args.all_scans:
            # Training and validation part are both all candidates, because the dataset may have a single subset.
            given |= {"evaluated": "@candidates", "split": ["@candidates", "@candidates"]}
        workflow = self.load("evaluating", given, bundle_dir() / "configs" / "evaluate.yaml", run=run)
        if metadata is not None and workflow.parser.get_parsed_content("flips"):
            raise LunaError("flips: --metadata stores the thresholds of a single pass; leave one of them out")
        run_workflow(workflow)
        from luna_monai.training.processes import launched

        if metadata is not None and launched().rank == 0:
            folder = Path(workflow.parser.get_parsed_content("output_dir"))
            evaluated, found = _read_json(folder / "metrics.json"), _read_json(folder / "calibration.json")
            model = {"weights": Path(evaluated["weights"]).name, "weights_sha256": evaluated["weights_sha256"]}
            points = {key: found[key] for key in ("fitted_on", "calibration", "thresholds")}
            metadata["operating_points"] = model | points
            write_json(self.cli_args.metadata, metadata)
            logger.info("Calibration and thresholds stored in %s", self.cli_args.metadata)


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LunaError(f"{path}: not a readable JSON object ({reason_of(error)})") from None
