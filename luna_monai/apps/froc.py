"""``luna-monai froc``: LUNA16's evaluation of a submission."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd

from luna_monai.apps.cli import App
from luna_monai.data.tables import COORDINATES, WITHOUT_EXCLUDED, read_finding_table
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes, write_json
from luna_monai.metrics.froc import (
    CONFIDENCE,
    FALSE_POSITIVES_PER_SCAN,
    FrocResult,
    check_bootstrap,
    evaluate_froc,
    rate_name,
)
from luna_monai.tables import read_table

logger = logging.getLogger(__name__)


class LunaFrocApp(App):
    """Evaluate candidates as the LUNA16 challenge does: FROC curve, sensitivities and CPM.

    Args:
        sys_argv: arguments; see ``luna-monai froc --help``.
    """

    name = "froc"
    description = "Evaluate a submission exactly as the LUNA16 challenge does: FROC curve, sensitivities and CPM."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("submission", metavar="SUBMISSION", help="CSV in the form of LUNA16's submissions")
        parser.add_argument("--annotations", metavar="CSV", required=True, help="LUNA16's annotations.csv: nodules")
        parser.add_argument("--excluded", metavar="CSV", help="LUNA16's annotations_excluded.csv: they do not count")
        parser.add_argument("--seriesuids", metavar="CSV", required=True, help="scans to evaluate, a series UID a line")
        parser.add_argument("--json", metavar="JSON", help="write all numbers, and the curve, to this file")
        parser.add_argument("--plot", metavar="PNG", help="write a picture of the curve to this file")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")

    def main(self) -> int:
        """Evaluate, and write the files that were asked for.

        Returns:
            0.

        Raises:
            LunaError: when a file is missing or damaged, or a value is not allowed.
        """
        arguments = self.cli_args
        check_bootstrap(arguments.bootstrap)
        seriesuids = read_seriesuids(Path(arguments.seriesuids))
        submission = read_table(arguments.submission, [*COORDINATES, "probability"])
        if submission.empty:
            raise LunaError(f"{arguments.submission}: a header line and no candidates")
        annotations = read_finding_table(arguments.annotations, negative_is_usual=False)
        excluded = read_finding_table(arguments.excluded) if arguments.excluded else None
        if excluded is None:
            logger.warning("%s", WITHOUT_EXCLUDED)
        result = evaluate_froc(submission, annotations, excluded, seriesuids, bootstrap=arguments.bootstrap)
        logger.info("%s", format_froc(result))
        name = Path(arguments.submission).name
        if arguments.json:
            write_json(arguments.json, {"submission": name, **result.to_dict()})
            logger.info("numbers: %s", arguments.json)
        if arguments.plot:
            from luna_monai.reports.figures import froc_figure, to_png  # takes a second to load

            write_bytes(arguments.plot, to_png(froc_figure(result, title=name)))
            logger.info("curve: %s", arguments.plot)
        return 0


def read_seriesuids(path: Path) -> list[str]:
    """Read a list of scans in the form of LUNA16's ``seriesuids.csv``.

    Args:
        path: one series UID a line; a header line ``seriesuid`` is allowed.

    Returns:
        The series UIDs in the order of the file.

    Raises:
        LunaError: when it is missing, empty or not text, a line holds several values, or a scan is listed twice.
    """
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LunaError(f"{path}: cannot be read ({error}); expected one series UID a line") from None
    found = [line for line in lines if line not in ("", "seriesuid")]
    wrong = [line for line in found if "," in line or ";" in line or found.count(line) > 1]
    if wrong or not found:
        raise LunaError(f"{path}: expected one series UID a line, each once, found {(wrong or ['nothing'])[0]!r}")
    return found


def format_froc(result: FrocResult) -> str:
    """Lay out an evaluation as a table for the console, several lines."""
    lines = [f"{name.replace('_', ' '):42}{count:8,}" for name, count in result.counts.items()]
    table = pd.DataFrame({"sensitivity": result.sensitivity}, index=[*map(rate_name, FALSE_POSITIVES_PER_SCAN)])
    summary = f"CPM {result.cpm:.4f}" if result.nodules else "CPM undefined: the scans have no annotated nodule"
    if result.interval is not None:
        points = result.interval.drop("cpm")[["lower", "upper"]]
        table = table.join(points.add_prefix(f"{CONFIDENCE:.0%} interval, ").set_index(table.index))
        summary += " ({} interval {lower:.4f} to {upper:.4f}".format(f"{CONFIDENCE:.0%}", **result.interval.loc["cpm"])
        summary += f", {result.samples:,} bootstrap samples of scans)"
    table = table.rename_axis(index="false positives per scan").reset_index()
    return "\n".join([*lines, "", table.to_string(index=False, float_format="{:.4f}".format), "", summary])
