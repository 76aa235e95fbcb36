"""``luna-monai synth``: write a synthetic LUNA16 dataset."""

import argparse
import logging

from luna_monai.apps.cli import App

logger = logging.getLogger(__name__)

#: Default and help of each option.
OPTIONS: dict[str, tuple[int | float | None, str]] = {
    "scans": (20, "number of scans"),
    "candidates_per_scan": (620, "number of candidates per scan"),
    "nodules_per_scan": (1.34, "mean number of nodules per scan"),
    "seed": (0, "seed of all random numbers"),
    "num_workers": (0, "worker processes; 0 for none"),
    "in_plane": (512, "voxels along x and y; scans below 400 show only a part of one lung, at the same voxel spacing"),
    "slices": (None, "voxels along z (default: enough for the whole thorax)"),
    "whole_thoraxes": (0, "scans of the whole thorax for any --in-plane and --slices, with 3 times the candidates"),
}


class LunaSynthApp(App):
    """Write a synthetic LUNA16 dataset: chest CTs with nodules, and candidates on nodules and on similar structures.

    On one machine, the same arguments give identical files, for any number of workers.
    """

    name = "synth"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("dataset_dir", metavar="DATASET_DIR", help="folder to write; must be new or empty")
        for name, (default, text) in OPTIONS.items():
            kind = float if isinstance(default, float) else int
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)

    def run(self) -> None:
        """Write the dataset."""
        # Imports SciPy and pandas, which --help does not need.
        from luna_monai.synthetic import write_dataset

        options = {name: getattr(self.cli_args, name) for name in OPTIONS}
        path = write_dataset(self.cli_args.dataset_dir, workers=options.pop("num_workers"), **options)
        logger.info("use it with: luna-monai train --dataset-dir %s", path)
