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
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, is_launched, launch
from luna_monai.trust import run_config
from luna_monai.workflow import (
    add_config_arguments,
    add_overrides_argument,
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
            metavar="RUN_OR_WEIGHTS",
            help="folder of a run, whose configuration is used too, but for code that is not in the bundle's own; or a "
            "model.pt, checkpoint.pt, a .state of the book, or an exported .ts or .onnx",
        )
        add_config_arguments(parser)
        parser.add_argument("--output-dir", default=None, help="folder of the results (default: RUN/evaluation)")
        parser.add_argument("--fold", type=int, default=None, help="LUNA16 subset to evaluate")
        parser.add_argument("--all-scans", action="store_true", help="evaluate all candidates, not the validation part")
        parser.add_argument(
            "--metadata",
            default=None,
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
        source = Path(arguments.run_or_weights)
        if not source.exists():
            raise LunaError(f"{source}: no such file or folder; it is the folder of a run, or a file of weights")
        metadata = None if arguments.metadata is None else _read_metadata(Path(arguments.metadata))
        files = config_files(arguments.config)
        weights, output_dir = source, arguments.output_dir
        if source.is_dir():
            weights = source / "model.pt"
            if not weights.is_file():
                raise LunaError(f"{source}: no model.pt in this folder, so it is not the folder of a run")
            files[0] = run_config(source, files[1:])
            output_dir = output_dir or str(source / "evaluation")
        files += [*distributed_overlay(), str(bundle_dir() / "configs" / "evaluate.yaml")]
        given = given_settings(arguments, arguments.overrides)
        given |= given_options({"weights": str(weights.resolve()), "output_dir": output_dir})
        if arguments.all_scans:
            # Both parts are all candidates, which may be of a single subset.
            given |= {"evaluated": "@candidates", "split": ["@candidates", "@candidates"]}
        if arguments.distributed is not None and not is_launched():
            launch(self, arguments.distributed)
            return 0
        workflow = load_workflow("evaluating", files, given)
        run_workflow(workflow)
        from luna_monai.training import launched

        if launched().rank > 0:
            return 0
        results = Path(workflow.parser.get_parsed_content("output_dir"))
        draw_figures(results)
        if metadata is not None:
            _store_calibration(Path(arguments.metadata), metadata, results)
        return 0


def draw_figures(output_dir: Path) -> None:
    """Draw the reliability of an evaluation, raw and calibrated, as PNG files in its folder.

    Args:
        output_dir: folder of an evaluation; without ``calibration.json`` nothing is drawn.
    """
    from luna_monai.files import write_bytes
    from luna_monai.training.evaluation import CALIBRATION

    names = {name: output_dir / f"reliability-{name}.png" for name in ("raw", "calibrated")}
    for path in names.values():
        path.unlink(missing_ok=True)
    if not (output_dir / CALIBRATION).is_file():
        return
    # Drawing takes a second to load.
    from luna_monai.reports.figures import reliability_figure, to_png

    curves = json.loads((output_dir / CALIBRATION).read_text(encoding="utf-8"))["reliability"]
    for name, path in names.items():
        if curves[name] is not None:
            write_bytes(path, to_png(reliability_figure(curves[name])))


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LunaError(f"{path}: cannot be read as the metadata.json of a bundle ({error})") from None
    if not isinstance(content, dict):
        raise LunaError(f"{path}: not the metadata.json of a bundle, expected a JSON object")
    return content


def _store_calibration(path: Path, metadata: dict[str, Any], results: Path) -> None:
    from luna_monai.files import write_json
    from luna_monai.training.evaluation import CALIBRATION, METRICS

    source = results / CALIBRATION
    if not source.is_file():
        raise LunaError(f"{path}: unchanged, because this evaluation has no calibration to store")
    content = json.loads(source.read_text(encoding="utf-8"))
    evaluated = json.loads((results / METRICS).read_text(encoding="utf-8"))
    metadata["operating_points"] = {
        "weights": Path(evaluated["weights"]).name,
        "weights_sha256": evaluated["weights_sha256"],
        **{key: content[key] for key in ("fitted_on", "calibration", "thresholds")},
        "expected_calibration_error": {
            name: curve["expected_calibration_error"]
            for name, curve in content["reliability"].items()
            if isinstance(curve, dict)
        },
    }
    write_json(path, metadata)
    logger.info("Calibration and thresholds stored in %s", path)
