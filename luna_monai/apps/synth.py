"""``luna-monai synth``: write a synthetic LUNA16 dataset."""

from __future__ import annotations

import argparse
import logging

from luna_monai.apps.cli import App

logger = logging.getLogger(__name__)

#: Default and help of each option, a number.
OPTIONS: dict[str, tuple[int | float | None, str]] = {
    "scans": (20, "number of scans"),
    "candidates_per_scan": (620, "candidates a scan"),
    "nodules_per_scan": (1.34, "mean number of nodules a scan"),
    "seed": (0, "seed of all random numbers"),
    "num_workers": (0, "processes"),
    "in_plane": (512, "voxels along x and y; below 400 a scan shows a part of one lung, with the same voxel spacing"),
    "slices": (None, "voxels along z (default: those of the whole thorax)"),
    "whole_thoraxes": (0, "number of scans of the whole thorax in any case, each with three times the candidates"),
}


class LunaSynthApp(App):
    """Write a synthetic LUNA16 dataset: chest CTs with nodules, and candidates on them and on what looks like them.

    The same arguments give the same bytes, for any number of workers.
    """

    name = "synth"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("dataset_dir", metavar="DATASET_DIR", help="the folder to write; new or empty")
        for name, (default, text) in OPTIONS.items():
            kind = float if isinstance(default, float) else int
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)

    def run(self) -> None:
        """Write the dataset."""
        # Generating needs scipy and pandas, which --help does not.
        from luna_monai.synthetic import write_dataset

        options = {name: getattr(self.cli_args, name) for name in OPTIONS}
        path = write_dataset(self.cli_args.dataset_dir, workers=options.pop("num_workers"), **options)
        logger.info("use it with: luna-monai train --dataset-dir %s", path)
