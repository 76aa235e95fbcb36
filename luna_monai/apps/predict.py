"""``luna-monai predict``: nodule probabilities for the candidates of any chest CT."""

from __future__ import annotations

import argparse
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.share import bundle_dir
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, launch
from luna_monai.workflow import add_settings, check_paths, given_options, given_settings, load_workflow, run_workflow


class LunaPredictApp(App):
    """Classify the candidates of one or many scans.

    Args:
        sys_argv: arguments; see ``luna-monai predict --help``.
    """

    name = "predict"
    description = (
        "Find nodule candidates in chest CTs, or take given ones, compute the probability of a nodule for each, and "
        "group them into findings with their size. Research software. Not for clinical use. Scans are identified by "
        "their series UID, or the name of their file."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "scan_and_overrides",
            nargs="+",
            metavar="SCAN | key=value",
            help="SCAN: a .mhd, .mha, .nii, .nii.gz or .nrrd file, a DICOM file, a folder of either, a LUNA16 "
            "dataset folder, or a CSV file with a column 'path'; key=value: values for any other key of "
            "bundle/configs/inference.yaml",
        )
        parser.add_argument(
            "--output",
            action="append",
            default=[],
            metavar="FILE",
            help="file to write, by its ending: .csv (LUNA16's submission), .findings.csv (table of findings), .json "
            "(everything), .mrk.json (3D Slicer), .nii.gz or .nrrd (outlines), .dcm (structured report about a DICOM "
            "scan), .seg.dcm (DICOM segmentation); may be repeated; {seriesuid} in its name makes a file for each scan",
        )
        keys = (
            "output_dir threshold max_findings anonymous report froc explain candidates coordinates seriesuid weights "
            "flips"
        )
        add_settings(parser, *keys.split(), "batch_size", "num_workers", kind="inference")
        add_distributed_argument(parser, "divide the scans among")

    def main(self) -> int:
        """Predict.

        Returns:
            0.

        Raises:
            LunaError: when a scan, the candidates, the weights, an output or an override is bad. With several scans,
                the others are classified and written first.
        """
        arguments = self.cli_args
        texts = arguments.scan_and_overrides
        scans = [text for text in texts if "=" not in text or Path(text).exists()]
        if len(scans) != 1:
            raise LunaError(f"one SCAN is needed, found {', '.join(map(repr, scans)) or 'none'}; a CSV file lists many")
        given = given_settings(arguments, [text for text in texts if text not in scans], "inference")
        given |= given_options({"scan": scans[0], "bundle_root": None if "weights" in given else str(bundle_dir())})
        if not any(given.get(name) for name in ("output", "report", "explain", "froc")):
            raise LunaError(
                "no output: name a file with --output, such as predictions.json, --report, --explain or --froc"
            )
        check_paths(SCAN=scans[0])
        if launch(self):
            return 0
        files = [str(Path(bundle_dir()) / "configs" / "inference.yaml"), *distributed_overlay("inference")]
        run_workflow(load_workflow("run", files, given, kind="inference"))
        return 0
