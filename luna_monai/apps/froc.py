"""``luna-monai froc``: LUNA16's evaluation of a submission."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from luna_monai.apps.cli import App
from luna_monai.data.tables import COORDINATES, WITHOUT_EXCLUDED, read_finding_table
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes, write_json
from luna_monai.metrics.findings import check_submission
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
        parser.add_argument("submission", help="CSV with seriesuid,coordX,coordY,coordZ,probability")
        parser.add_argument("--annotations", required=True, help="LUNA16's annotations.csv, the nodules to be found")
        parser.add_argument("--excluded", help="LUNA16's annotations_excluded.csv, findings that do not count")
        parser.add_argument("--seriesuids", required=True, help="list of the scans to evaluate, one series UID a line")
        parser.add_argument("--json", metavar="OUT", help="write all numbers, and the curve, to this file")
        parser.add_argument("--plot", metavar="OUT.png", help="write a picture of the curve to this file")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")
        parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")

    def main(self) -> int:
        """Evaluate, and write the files that were asked for.

        Returns:
            0.

        Raises:
            LunaError: when a file is missing or damaged, or a value is not allowed.
        """
        arguments = self.cli_args
        check_bootstrap(arguments.bootstrap)
        if arguments.seed < 0:
            raise LunaError(f"--seed must not be negative, found {arguments.seed}")
        seriesuids = read_seriesuids(Path(arguments.seriesuids))
        submission = read_table(arguments.submission, [*COORDINATES, "probability"])
        if submission.empty:
            raise LunaError(f"{arguments.submission}: a header line and no candidates")
        check_submission(submission, seriesuids, arguments.submission)
        annotations = read_finding_table(arguments.annotations, negative_is_usual=False)
        excluded = read_finding_table(arguments.excluded) if arguments.excluded else None
        if excluded is None:
            logger.warning("%s", WITHOUT_EXCLUDED)
        options = {"bootstrap": arguments.bootstrap, "seed": arguments.seed}
        result = evaluate_froc(submission, annotations, excluded, seriesuids, **options)
        logger.info("%s", format_froc(result))
        name = Path(arguments.submission).name
        if arguments.json:
            write_json(arguments.json, {"submission": name, "seed": arguments.seed, **result.to_dict()})
            logger.info("numbers: %s", arguments.json)
        if arguments.plot:
            # Drawing takes a second to load.
            from luna_monai.reports.figures import froc_figure, to_png

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
        LunaError: when it is missing, empty or no text, a line holds several values, or a scan is listed twice.
    """
    try:
        lines = [line.strip().rstrip(",") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LunaError(f"{path}: cannot be read ({error}); expected one series UID a line") from None
    found: list[str] = []
    for number, line in enumerate(lines, start=1):
        if "," in line or ";" in line:
            raise LunaError(f"{path}, line {number}: expected one series UID, found {line!r}")
        if line in found:
            raise LunaError(f"{path}, line {number}: series {line} is already in line {lines.index(line) + 1}")
        if line and (number, line) != (1, "seriesuid"):
            found.append(line)
    if not found:
        raise LunaError(f"{path}: the file is empty; expected one series UID a line")
    return found


def format_froc(result: FrocResult) -> str:
    """Lay out an evaluation as a table for the console, several lines."""
    lines = [f"{name.replace('_', ' '):42}{count:8,}" for name, count in result.counts.items()]
    rows = {"sensitivity": result.sensitivity}
    summary = f"CPM {result.cpm:.4f}"
    if result.interval is not None:
        percent, cpm = f"{CONFIDENCE:.0%}", result.interval.cpm
        points = result.interval.luna16_points
        rows |= {f"  {percent} interval, {name}": points[name].to_numpy() for name in ("lower", "upper")}
        summary += f", {percent} interval {cpm['lower']:.4f} to {cpm['upper']:.4f} "
        summary += f"({result.interval.samples:,} bootstrap samples of scans)"
    if not result.nodules:
        summary = "CPM undefined: the evaluated scans have no annotated nodule"
    rates = "".join(f"{rate_name(rate):>8}" for rate in FALSE_POSITIVES_PER_SCAN)
    lines += ["", f"{'false positives per scan':26}{rates}"]
    lines += [f"{name:26}" + "".join(f"{value:8.4f}" for value in values) for name, values in rows.items()]
    return "\n".join([*lines, "", summary])
