"""``luna-monai report``: a run as one HTML file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.outputs import check_file
from luna_monai.reports.run import read_run
from luna_monai.reports.run_report import build_report

logger = logging.getLogger(__name__)


class LunaReportApp(App):
    """Show the results and errors of a run in one self-contained HTML file.

    Args:
        sys_argv: arguments; see ``luna-monai report --help``.
    """

    name = "report"
    description = "Write one self-contained HTML file with a run's curves, results and worst errors."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("run", metavar="RUN", help="folder of a run, the --output-dir of 'luna-monai train'")
        parser.add_argument("--output", metavar="FILE", help="the HTML file (default: RUN/report.html)")
        parser.add_argument("--dataset-dir", help="LUNA16 dataset folder (default: that of the run)")
        parser.add_argument("--threshold", type=float, default=0.5, help="candidates above it count as nodules")

    def main(self) -> int:
        """Write the report.

        Returns:
            0.

        Raises:
            LunaError: when the run or its dataset is missing or damaged, or the file cannot be written.
        """
        arguments = self.cli_args
        if not 0 <= arguments.threshold <= 1:
            raise LunaError(f"--threshold must be between 0 and 1, found {arguments.threshold:g}")
        output = Path(arguments.output or Path(arguments.run) / "report.html")
        check_file(output, (".html", ".htm"))
        run = read_run(arguments.run, arguments.dataset_dir)
        content = build_report(run, arguments.threshold).encode()
        write_bytes(output, content)
        logger.info("report: %s (%.1f MB)", output, len(content) / 1e6)
        return 0
