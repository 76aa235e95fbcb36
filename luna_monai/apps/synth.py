"""``luna-monai synth``: write a synthetic LUNA16 dataset."""

from __future__ import annotations

import argparse
import logging

from luna_monai.apps.cli import App

logger = logging.getLogger(__name__)


class LunaSynthApp(App):
    """Write synthetic chest CTs, with nodules and with what looks like nodules, as a LUNA16 folder.

    Args:
        sys_argv: arguments; see ``luna-monai synth --help``.
    """

    name = "synth"
    description = (
        "Write a synthetic LUNA16 dataset: chest CTs with nodules, and candidates on them and on what looks like them. "
        "The same arguments give the same bytes, for any number of workers."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("dataset_dir", metavar="DATASET_DIR", help="the folder to write; new or empty")
        parser.add_argument("--scans", type=int, default=20, help="number of scans")
        parser.add_argument("--candidates-per-scan", type=int, default=620, help="candidates a scan")
        parser.add_argument("--nodules-per-scan", type=float, default=1.34, help="mean number of nodules a scan")
        parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
        parser.add_argument(
            "--num-workers", dest="workers", metavar="NUM_WORKERS", type=int, default=0, help="processes"
        )
        parser.add_argument(
            "--in-plane",
            type=int,
            default=512,
            help="voxels along x and y; below 400 a scan shows a part of one lung, with the same voxel spacing",
        )
        parser.add_argument("--slices", type=int, help="voxels along z (default: those of the whole thorax)")
        parser.add_argument(
            "--whole-thoraxes",
            type=int,
            default=0,
            help="number of scans of the whole thorax, whatever --in-plane and --slices are; they have three times the "
            "candidates",
        )

    def main(self) -> int:
        """Write the dataset.

        Returns:
            0.

        Raises:
            LunaError: when an argument is out of range or the folder cannot be written.
        """
        # Generating needs scipy and pandas, which --help does not.
        from luna_monai.synthetic import write_dataset

        options = {key: value for key, value in vars(self.cli_args).items() if key not in ("dataset_dir", "debug")}
        path = write_dataset(self.cli_args.dataset_dir, **options)
        logger.info("use it with: luna-monai train --dataset-dir %s", path)
        return 0
