"""``luna-monai report``: a report of a training run as one HTML file."""

import argparse
import logging
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.errors import LunaError
from luna_monai.files import check_file, write_bytes
from luna_monai.reports.run_report import build_report

logger = logging.getLogger(__name__)


class LunaReportApp(App):
    """Write a self-contained HTML file with the curves, the results and the worst errors of a training run."""

    name = "report"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("run", metavar="RUN", help="run folder, the --output-dir of 'luna-monai train'")
        parser.add_argument("--output", metavar="FILE", help="HTML file to write (default: RUN/report.html)")
        parser.add_argument("--dataset-dir", help="LUNA16 dataset folder (default: the folder that the run used)")
        parser.add_argument("--threshold", type=float, default=0.5, help="probability threshold for nodules")

    def run(self) -> None:
        """Write the report."""
        arguments = self.cli_args
        output = Path(arguments.output or Path(arguments.run) / "report.html")
        check_file(output, [".html", ".htm"])
        if not 0 <= arguments.threshold <= 1:
            raise LunaError(f"--threshold: {arguments.threshold} is not a probability from 0 to 1")
        content = build_report(Path(arguments.run), arguments.dataset_dir, arguments.threshold).encode(errors="replace")
        write_bytes(output, content)
        logger.info("report: %s (%.1f MB)", output, len(content) / 1e6)
