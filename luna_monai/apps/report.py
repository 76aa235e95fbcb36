"""``luna-monai report``: a run as one HTML file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.files import write_bytes
from luna_monai.reports.run_report import build_report

logger = logging.getLogger(__name__)


class LunaReportApp(App):
    """Write one self-contained HTML file with a run's curves, results and worst errors."""

    name = "report"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("run", metavar="RUN", help="folder of a run, the --output-dir of 'luna-monai train'")
        parser.add_argument("--output", metavar="FILE", help="the HTML file (default: RUN/report.html)")
        parser.add_argument("--dataset-dir", help="LUNA16 dataset folder (default: that of the run)")
        parser.add_argument("--threshold", type=float, default=0.5, help="candidates above it count as nodules")

    def run(self) -> None:
        """Write the report."""
        arguments = self.cli_args
        output = Path(arguments.output or Path(arguments.run) / "report.html")
        content = build_report(Path(arguments.run), arguments.dataset_dir, arguments.threshold).encode()
        write_bytes(output, content)
        logger.info("report: %s (%.1f MB)", output, len(content) / 1e6)
