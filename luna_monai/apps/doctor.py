"""``luna-monai doctor``: what is wrong with a dataset folder, and what to do about it."""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

from luna_monai.apps.cli import App
from luna_monai.data.doctor import examine_dataset
from luna_monai.data.doctor_codes import ERROR, INFORMATION, WARNING, Finding
from luna_monai.files import write_bytes

logger = logging.getLogger(__name__)

#: Findings of one kind that the report shows; ``--json`` has them all.
EXAMPLES = 3


class LunaDoctorApp(App):
    """Examine a LUNA16 dataset folder.

    Args:
        sys_argv: arguments; see ``luna-monai doctor --help``.
    """

    name = "doctor"
    description = (
        "Examine a LUNA16 dataset folder: files, headers and tables, and with --deep all voxels. "
        "The exit status is 1 if there is an error; a part of LUNA16 is none."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("--dataset-dir", default="data-unversioned/part2/luna", help="LUNA16 dataset folder")
        parser.add_argument("--deep", action="store_true", help="read all voxels too, about a second a scan")
        parser.add_argument("--num-workers", type=int, default=2, help="scans read at a time by --deep")
        parser.add_argument(
            "--expect-complete", action="store_true", help="count anything less than all 888 scans as an error"
        )
        parser.add_argument("--json", metavar="FILE", help="write everything that was found to this file")

    def main(self) -> int:
        """Examine and report.

        Returns:
            1 if something is wrong, else 0.

        Raises:
            LunaError: when there is no such folder.
        """
        arguments = self.cli_args
        findings = examine_dataset(
            arguments.dataset_dir,
            deep=arguments.deep,
            expect_complete=arguments.expect_complete,
            num_workers=arguments.num_workers,
        )
        if arguments.json:
            write_bytes(arguments.json, f"{format_json(arguments.dataset_dir, findings)}\n".encode())
        logger.info("%s", format_report(findings))
        return int(any(finding.severity == ERROR for finding in findings))


def format_report(findings: Sequence[Finding]) -> str:
    """Lay out findings for people: kinds with their number, the first examples, and what to do.

    Args:
        findings: of :func:`~luna_monai.data.doctor.examine_dataset`, errors first.

    Returns:
        Several lines of text; errors come last, where they are still on the screen.
    """
    order = (INFORMATION, WARNING, ERROR)
    ranked = sorted(findings, key=lambda each: (order.index(each.severity), each.code != "overview", each.code))
    lines = []
    for (severity, _), group in groupby(ranked, key=lambda each: (each.severity, each.code)):
        same = list(group)
        first = same[0]
        times = f" ({len(same)} times)" if len(same) > 1 else ""
        lines.append(f"{severity.upper()}: {first.title}{times}")
        lines += [f"    {finding.subject}: {finding.message}" for finding in same[:EXAMPLES]]
        if len(same) > EXAMPLES:
            lines.append(f"    … and {len(same) - EXAMPLES} more, listed by --json")
        if first.advice:
            lines.append(f"    What to do: {first.advice}.")
    counts = Counter(finding.severity for finding in findings)
    verdict = "something is wrong" if counts[ERROR] else "nothing is wrong"
    return "\n".join([*lines, f"{verdict}: {counts[ERROR]} errors, {counts[WARNING]} warnings"])


def format_json(dataset_dir: str, findings: Sequence[Finding]) -> str:
    """Lay out findings for programs.

    Args:
        dataset_dir: the folder that was examined.
        findings: of :func:`~luna_monai.data.doctor.examine_dataset`.

    Returns:
        A JSON object with ``dataset_dir``, ``counts`` by severity, and ``findings``, each with ``severity``, ``code``,
        ``subject``, ``message``, ``title`` and ``advice``.
    """
    counts = Counter(finding.severity for finding in findings)
    content = {
        "dataset_dir": dataset_dir,
        "counts": {severity: counts[severity] for severity in (ERROR, WARNING, INFORMATION)},
        "findings": [{**asdict(each), "title": each.title, "advice": each.advice} for each in findings],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)
