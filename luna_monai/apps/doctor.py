"""``luna-monai doctor``: check a dataset folder."""

import argparse
import logging
from collections import Counter, defaultdict

from luna_monai.apps.cli import App
from luna_monai.data.doctor import ERROR, WARNING, examine_dataset

logger = logging.getLogger(__name__)

#: Number of examples that are shown for each problem.
EXAMPLES = 5


class LunaDoctorApp(App):
    """Check a LUNA16 dataset folder: files, headers and tables, and with --deep all voxels.

    The exit status is 1 if there is an error. Missing subsets and scans of LUNA16 are not errors.
    """

    name = "doctor"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--dataset-dir", default="data-unversioned/part2/luna", help="LUNA16 dataset folder")
        parser.add_argument("--deep", action="store_true", help="also read all voxels, about 1 s per scan")
        parser.add_argument("--num-workers", type=int, default=2, help="scans that --deep reads at the same time")

    def run(self) -> int:
        """Check the dataset, and log each kind of problem with examples. Errors come last, next to the prompt."""
        arguments, kinds = self.cli_args, defaultdict(list)
        found = examine_dataset(arguments.dataset_dir, deep=arguments.deep, num_workers=arguments.num_workers)
        for one in found:
            kinds[one.severity, one.kind].append(one.subject)
        for (severity, kind), subjects in reversed(kinds.items()):
            logger.info("%s (%d): %s", severity.upper(), len(subjects), kind)
            for subject in subjects[:EXAMPLES]:
                logger.info("    %s", subject)
        counts = Counter(one.severity for one in found)
        result = "errors found" if counts[ERROR] else "no errors"
        logger.info("%s: %d errors, %d warnings", result, counts[ERROR], counts[WARNING])
        return int(counts[ERROR] > 0)
