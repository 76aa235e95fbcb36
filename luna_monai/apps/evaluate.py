"""``luna-monai evaluate``: metrics, calibration and thresholds of given weights."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError, unwrapped_luna_errors
from luna_monai.files import write_bytes, write_json
from luna_monai.share import bundle_dir
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, launch
from luna_monai.workflow import (
    add_config_arguments,
    add_overrides_argument,
    check_paths,
    config_files,
    given_options,
    given_settings,
    load_workflow,
    run_config,
    run_workflow,
)

logger = logging.getLogger(__name__)


class LunaEvaluateApp(App):
    """Evaluate a run or a file of weights: predictions, metrics, calibration and thresholds.

    Args:
        sys_argv: arguments; see ``luna-monai evaluate --help``.
    """

    name = "evaluate"
    description = (
        "Evaluate weights on the validation part of a dataset: predictions, metrics, LUNA16's FROC, calibration, and "
        "thresholds for a wanted sensitivity or number of false positives per scan."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            metavar="RUN",
            help="folder of a run, whose configuration is used too, except code that the bundle does not have; or a "
            "file of weights: model.pt, checkpoint.pt, a .state of the book, or an exported .ts or .onnx",
        )
        add_config_arguments(parser, "num_workers")
        parser.add_argument(
            "--output-dir",
            help="folder of the results (default: RUN/evaluation, or for a file data-unversioned/evaluation/NAME-HASH)",
        )
        parser.add_argument("--fold", type=int, help="LUNA16 subset to evaluate")
        parser.add_argument("--all-scans", action="store_true", help="evaluate all candidates, not the validation part")
        parser.add_argument(
            "--metadata",
            metavar="JSON",
            help="also store calibration, thresholds and the SHA-256 of the weights in this metadata.json of a bundle",
        )
        add_distributed_argument(parser, "divide the candidates among")
        add_overrides_argument(parser)

    def main(self) -> int:
        """Evaluate.

        Raises:
            LunaError: when the run, the weights, the data or the configuration is bad.
        """
        arguments = self.cli_args
        check_paths(RUN=arguments.run_or_weights, dataset_dir=arguments.dataset_dir, metadata=arguments.metadata)
        metadata = None if arguments.metadata is None else _read_json(Path(arguments.metadata))
        source, files = Path(arguments.run_or_weights), config_files(arguments.config)
        weights, output_dir = source, arguments.output_dir
        if source.is_dir():
            weights, output_dir = source / "model.pt", output_dir or str(source / "evaluation")
            if not weights.is_file():
                raise LunaError(f"{source}: no model.pt in this folder, so it is not the folder of a run")
            files[0] = run_config(source, files[1:])
        files += [*distributed_overlay(), str(bundle_dir() / "configs" / "evaluate.yaml")]
        given = given_settings(arguments, arguments.overrides)
        given |= given_options({"weights": str(weights.resolve()), "output_dir": output_dir})
        if arguments.all_scans:
            # Both parts are all candidates, which may be of a single subset.
            given |= {"evaluated": "@candidates", "split": ["@candidates", "@candidates"]}
        if launch(self):
            return 0
        workflow = load_workflow("evaluating", files, given)
        with unwrapped_luna_errors():
            results = Path(workflow.parser.get_parsed_content("output_dir"))
        from luna_monai.training import launched

        is_first = launched().rank == 0
        if is_first and (results / "metrics.json").is_file():
            logger.info("%s: an earlier evaluation is there; its files will be replaced", results)
        run_workflow(workflow)
        if is_first:
            calibration = results / "calibration.json"
            content = _read_json(calibration) if calibration.is_file() else {}
            _draw_reliability(content.get("reliability", {}), results)
            if metadata is not None:
                metadata["operating_points"] = _operating_points(content, _read_json(results / "metrics.json"))
                write_json(arguments.metadata, metadata)
                logger.info("Calibration and thresholds stored in %s", arguments.metadata)
        return 0


def _draw_reliability(curves: dict[str, Any], folder: Path) -> None:
    """Draw the reliability of raw and calibrated probabilities as PNG files."""
    for name in ("raw", "calibrated"):
        path = folder / f"reliability-{name}.png"
        path.unlink(missing_ok=True)  # of an earlier evaluation
        if curves.get(name) is not None:
            from luna_monai.reports.figures import reliability_figure, to_png  # takes a second to load

            write_bytes(path, to_png(reliability_figure(curves[name])))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LunaError(f"{path}: cannot be read as a JSON object ({error})") from None


def _operating_points(content: dict[str, Any], evaluated: dict[str, Any]) -> dict[str, Any]:
    if not content:
        raise LunaError("--metadata: unchanged, because this evaluation has no calibration to store")
    errors = {
        name: content["reliability"][name]["expected_calibration_error"]
        for name in ("raw", "calibrated")
        if content["reliability"][name]
    }
    return {
        "weights": Path(evaluated["weights"]).name,
        "weights_sha256": evaluated["weights_sha256"],
        **{key: content[key] for key in ("fitted_on", "calibration", "thresholds")},
        "expected_calibration_error": errors,
    }
