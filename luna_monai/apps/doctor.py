"""``luna-monai doctor``: check a dataset folder."""

from __future__ import annotations

import argparse
import logging
from collections import Counter, defaultdict

from luna_monai.apps.cli import App
from luna_monai.data.doctor import ERROR, WARNING, examine_dataset

logger = logging.getLogger(__name__)

#: Findings of one kind that are shown.
EXAMPLES = 5


class LunaDoctorApp(App):
    """Examine a LUNA16 dataset folder: files, headers and tables, and with --deep all voxels.

    The exit status is 1 if there is an error. Missing parts of LUNA16 are not errors.
    """

    name = "doctor"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--dataset-dir", default="data-unversioned/part2/luna", help="LUNA16 dataset folder")
        parser.add_argument("--deep", action="store_true", help="read all voxels too, about a second a scan")
        parser.add_argument("--num-workers", type=int, default=2, help="scans read at a time by --deep")

    def run(self) -> int:
        """Examine and report: kinds with their number and examples, errors last, where they stay on the screen."""
        arguments, kinds = self.cli_args, defaultdict(list)
        found = examine_dataset(arguments.dataset_dir, deep=arguments.deep, num_workers=arguments.num_workers)
        for one in found:
            kinds[one.severity, one.kind].append(one.subject)
        for (severity, kind), subjects in reversed(kinds.items()):
            logger.info("%s (%d): %s", severity.upper(), len(subjects), kind)
            for subject in subjects[:EXAMPLES]:
                logger.info("    %s", subject)
        counts = Counter(one.severity for one in found)
        result = "something is wrong" if counts[ERROR] else "nothing is wrong"
        logger.info("%s: %d errors, %d warnings", result, counts[ERROR], counts[WARNING])
        return int(counts[ERROR] > 0)
