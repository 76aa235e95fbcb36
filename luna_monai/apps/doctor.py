"""``luna-monai doctor``: check a dataset folder."""

from __future__ import annotations

import argparse
import logging
from collections import Counter

from luna_monai.apps.cli import App
from luna_monai.data.doctor import ERROR, WARNING, examine_dataset

logger = logging.getLogger(__name__)

#: Findings of one kind that are shown.
EXAMPLES = 5


class LunaDoctorApp(App):
    """Examine a LUNA16 dataset folder.

    Args:
        sys_argv: arguments; see ``luna-monai doctor --help``.
    """

    name = "doctor"
    description = (
        "Examine a LUNA16 dataset folder: files, headers and tables, and with --deep all voxels. "
        "The exit status is 1 if there is an error. Missing parts of LUNA16 are not errors."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--dataset-dir", default="data-unversioned/part2/luna", help="LUNA16 dataset folder")
        parser.add_argument("--deep", action="store_true", help="read all voxels too, about a second a scan")
        parser.add_argument("--num-workers", type=int, default=2, help="scans read at a time by --deep")

    def main(self) -> int:
        """Examine and report: kinds with their number and first examples, errors last, where they stay on the screen.

        Returns:
            1 if something is wrong, else 0.

        Raises:
            LunaError: when there is no such folder.
        """
        arguments = self.cli_args
        findings = examine_dataset(arguments.dataset_dir, deep=arguments.deep, num_workers=arguments.num_workers)
        kinds: dict[tuple[str, str], list[str]] = {}
        for finding in reversed(findings):
            kinds.setdefault((finding.severity, finding.kind), []).insert(0, finding.subject)
        for (severity, kind), subjects in kinds.items():
            logger.info("%s: %s%s", severity.upper(), kind, f" ({len(subjects)} times)" if len(subjects) > 1 else "")
            for subject in subjects[:EXAMPLES]:
                logger.info("    %s", subject)
            if len(subjects) > EXAMPLES:
                logger.info("    … and %d more", len(subjects) - EXAMPLES)
        counts = Counter(finding.severity for finding in findings)
        verdict = "something is wrong" if counts[ERROR] else "nothing is wrong"
        logger.info("%s: %d errors, %d warnings", verdict, counts[ERROR], counts[WARNING])
        return int(counts[ERROR] > 0)
