"""``luna-monai predict``: nodule probabilities for the candidates of any chest CT."""

from __future__ import annotations

import argparse
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.share import bundle_dir
from luna_monai.torchrun import add_distributed_argument, distributed_overlay, launch
from luna_monai.workflow import check_paths, given_options, given_settings, load_workflow, run_workflow


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
    intermixed = True

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
        parser.add_argument("--output-dir", help="folder of the outputs (default: the current folder)")
        parser.add_argument(
            "--threshold",
            type=float,
            help="findings of this probability or a higher one are shown in all outputs but .csv and .json "
            "(default: the model's threshold for 4 false positives per scan, or 0.5 where it is not known)",
        )
        parser.add_argument(
            "--max-findings", type=int, help="show at most this number of findings of a scan (default: 20)"
        )
        parser.add_argument(
            "--anonymous",
            action="store_true",
            default=None,
            help="leave the patient's tags of DICOM outputs empty; by default they are those of the CT, so that an "
            "archive stores them with it. No other output has them",
        )
        parser.add_argument("--report", metavar="HTML", help="write a page with the findings in pictures")
        parser.add_argument(
            "--froc",
            metavar="JSON",
            help="write LUNA16's FROC of candidates and of findings, where SCAN is a folder with annotations.csv",
        )
        parser.add_argument(
            "--explain",
            metavar="NIFTI",
            help="write an attribution map of the most probable findings, .nii.gz or .nrrd in the space of the scan; "
            "the report shows it too",
        )
        parser.add_argument(
            "--candidates",
            metavar="CSV",
            help="coordX,coordY,coordZ, and seriesuid for several scans (default: blobs found inside the lungs)",
        )
        parser.add_argument(
            "--coordinates",
            choices=("lps", "ras", "voxel"),
            help="of the candidates: mm in LPS as in LUNA16 and DICOM (default), mm in RAS as in NIfTI, or voxels "
            "x, y, z from 0",
        )
        parser.add_argument("--seriesuid", help="the series to take, where there are several")
        parser.add_argument(
            "--weights",
            metavar="WEIGHTS",
            help="a run's model.pt or checkpoint.pt, a .state file of the book, or an exported .ts, .onnx or .xml "
            "(default: those of the bundle)",
        )
        parser.add_argument("--batch-size", type=int, help="candidates that are classified at once")
        parser.add_argument("--num-workers", type=int, help="scans that are read ahead, each in memory (default: 0)")
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
