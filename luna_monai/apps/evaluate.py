"""``luna-monai evaluate``: what given weights do on the validation scans, and which thresholds to use them with."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.share import bundle_dir
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, launch
from luna_monai.trust import run_config
from luna_monai.workflow import (
    add_config_arguments,
    add_overrides_argument,
    check_paths,
    config_files,
    given_options,
    given_settings,
    load_workflow,
    run_workflow,
)

logger = logging.getLogger(__name__)


class LunaEvaluateApp(App):
    """Evaluate a run or a file of weights: predictions, metrics, calibration and thresholds.

    Args:
        sys_argv: arguments; see ``luna-monai evaluate --help``.
    """

    name = "evaluate"
    intermixed = True
    description = (
        "Evaluate weights on the validation part of a dataset: predictions, metrics, LUNA16's FROC, calibration, and "
        "thresholds for a wanted sensitivity or number of false positives per scan."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "run_or_weights",
            metavar="RUN",
            help="folder of a run, whose configuration is used too, but for code that is not in the bundle's own; or a "
            "model.pt, checkpoint.pt, a .state of the book, or an exported .ts or .onnx",
        )
        add_config_arguments(parser)
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
        if arguments.metadata is not None:
            _read_json(Path(arguments.metadata))
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
        run_workflow(workflow)
        from luna_monai.training import launched

        if launched().rank == 0:
            results = Path(workflow.parser.get_parsed_content("output_dir"))
            _draw_figures(results)
            if arguments.metadata is not None:
                _store_calibration(Path(arguments.metadata), results)
        return 0


def _draw_figures(output_dir: Path) -> None:
    """Draw the reliability of an evaluation, raw and calibrated, as PNG files in its folder."""
    from luna_monai.files import write_bytes

    path = output_dir / "calibration.json"
    curves = _read_json(path)["reliability"] if path.is_file() else {}
    for name in ("raw", "calibrated"):
        path = output_dir / f"reliability-{name}.png"
        path.unlink(missing_ok=True)
        if curves.get(name) is not None:
            from luna_monai.reports.figures import reliability_figure, to_png  # which takes a second to load

            write_bytes(path, to_png(reliability_figure(curves[name])))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LunaError(f"{path}: cannot be read as a JSON object ({error})") from None


def _store_calibration(path: Path, results: Path) -> None:
    from luna_monai.files import write_json

    if not (results / "calibration.json").is_file():
        raise LunaError(f"{path}: unchanged, because this evaluation has no calibration to store")
    content, evaluated = _read_json(results / "calibration.json"), _read_json(results / "metrics.json")
    curves = {name: content["reliability"][name] for name in ("raw", "calibrated")}
    points = {
        "weights": Path(evaluated["weights"]).name,
        "weights_sha256": evaluated["weights_sha256"],
        **{key: content[key] for key in ("fitted_on", "calibration", "thresholds")},
        "expected_calibration_error": {
            name: curve["expected_calibration_error"] for name, curve in curves.items() if curve
        },
    }
    write_json(path, {**_read_json(path), "operating_points": points})
    logger.info("Calibration and thresholds stored in %s", path)
