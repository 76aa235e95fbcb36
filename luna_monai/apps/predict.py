"""``luna-monai predict``: nodule probabilities for the candidates of any chest CT."""

from __future__ import annotations

import argparse

from luna_monai.apps.bundle_app import BundleApp
from luna_monai.literals import literal
from luna_monai.share import bundle_dir
from luna_monai.workflow import existing, run_workflow


class LunaPredictApp(BundleApp):
    """Find nodules in chest CTs.

    Candidates are proposed, or given; each gets the probability of a nodule, and those on one structure become a
    finding with its size. Research software. Not for clinical use. Scans are identified by their series UID, or the
    name of their file. With several scans, a bad one does not stop the others.
    """

    name = "predict"
    kind = "inference"
    settings = (
        *("output_dir", "threshold", "max_findings", "anonymous", "report", "froc", "explain"),
        *("candidates", "coordinates", "seriesuid", "weights", "flips", "batch_size", "num_workers"),
    )
    together = "divide the scans among"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "scan",
            type=existing,
            metavar="SCAN",
            help="a .mhd, .mha, .nii, .nii.gz or .nrrd file, a DICOM file, a folder of either, a LUNA16 dataset "
            "folder, or a CSV file with a column 'path'",
        )
        parser.add_argument(
            "--output",
            action="append",
            metavar="FILE",
            help="file to write, by its ending: .csv (LUNA16's submission), .findings.csv (table of findings), .json "
            "(everything), .mrk.json (3D Slicer), .nii.gz or .nrrd (outlines), .dcm (structured report about a DICOM "
            "scan), .seg.dcm (DICOM segmentation); may be repeated; {seriesuid} in its name makes a file for each scan",
        )
        super().add_arguments(parser)

    def run(self) -> None:
        """Predict."""
        given = self.given()
        if "weights" not in given:
            given["bundle_root"] = literal(str(bundle_dir()))
        run_workflow(self.load("run", given))
