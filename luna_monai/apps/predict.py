"""``luna-monai predict``: find nodules in chest CTs."""

import argparse

from luna_monai.apps.bundle_app import BundleApp
from luna_monai.literals import literal
from luna_monai.share import bundle_dir
from luna_monai.workflow import existing, run_workflow


class LunaPredictApp(BundleApp):
    """Find nodules in chest CTs. Research software. Not for clinical use.

    Candidates are proposed, or read from a list. The network computes the probability of a nodule for each candidate.
    Candidates in the same structure are combined to a finding, whose size is measured. Scans are identified by their
    series UID, or by their file name. If one of several scans cannot be read, the others are still classified.
    """

    name = "predict"
    kind = "inference"
    distributed_help = "divide the scans among"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument(
            "scan",
            type=existing,
            metavar="SCAN",
            help="a .mhd, .mha, .nii, .nii.gz or .nrrd file, a DICOM file, a folder of such files, a LUNA16 dataset "
            "folder, or a CSV file with a column 'path'",
        )
        parser.add_argument(
            "--output",
            action="append",
            metavar="FILE",
            help="file to write; may be repeated. The ending is the format: .csv (LUNA16 submission), .findings.csv "
            "(table of findings), .json (all results), .mrk.json (3D Slicer points), .nii.gz or .nrrd (outlines), .dcm "
            "(structured report), .seg.dcm (DICOM segmentation). A name with {seriesuid} is written for each scan",
        )
        super().add_arguments(parser)

    def run(self) -> None:
        """Classify the scans."""
        workflow = self.load("run", self.given())
        workflow.parser["bundle_root"] = literal(str(bundle_dir()))
        run_workflow(workflow)
