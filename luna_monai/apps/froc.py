"""``luna-monai froc``: LUNA16's evaluation of a submission."""

import argparse
import logging
import re
from pathlib import Path

import pandas as pd

from luna_monai.apps.cli import App
from luna_monai.data.tables import COORDINATES, WITHOUT_EXCLUDED, read_finding_table
from luna_monai.errors import LunaError, reason_of
from luna_monai.files import check_file, write_bytes, write_json
from luna_monai.metrics.froc import FALSE_POSITIVES_PER_SCAN, FrocResult, evaluate_froc, rate_name
from luna_monai.tables import ALIASES, read_table

logger = logging.getLogger(__name__)


class LunaFrocApp(App):
    """Evaluate a submission by the rules of the LUNA16 challenge: FROC curve, sensitivities and CPM."""

    name = "froc"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        parser.add_argument("submission", metavar="SUBMISSION", help="CSV file in LUNA16's submission format")
        parser.add_argument("--annotations", metavar="CSV", required=True, help="LUNA16's annotations.csv, the nodules")
        parser.add_argument("--excluded", metavar="CSV", help="annotations_excluded.csv, where hits are ignored")
        parser.add_argument("--seriesuids", metavar="CSV", required=True, help="scans, one series UID per line")
        parser.add_argument("--json", metavar="JSON", help="file for all numbers and the curve (default: not written)")
        parser.add_argument("--plot", metavar="PNG", help="file for a plot of the curve (default: not written)")
        parser.add_argument("--bootstrap", type=int, default=1000, help="bootstrap samples of scans; 0 for no interval")

    def run(self) -> None:
        """Evaluate the submission, and write the files of ``--json`` and ``--plot``."""
        arguments = self.cli_args
        for path, ending in ((arguments.json, ".json"), (arguments.plot, ".png")):
            if path:
                check_file(path, [ending])
        seriesuids = read_seriesuids(arguments.seriesuids)
        submission = read_table(arguments.submission, [*COORDINATES, "probability"])
        annotations = read_finding_table(arguments.annotations, negative_is_usual=False)
        excluded = read_finding_table(arguments.excluded) if arguments.excluded else None
        if excluded is None:
            logger.warning("%s", WITHOUT_EXCLUDED)
        try:
            result = evaluate_froc(submission, annotations, excluded, seriesuids, bootstrap=arguments.bootstrap)
        except LunaError as error:  # names a row of the submission
            raise LunaError(f"{arguments.submission}: {error}") from None
        logger.info("%s", format_froc(result))
        if arguments.json:
            write_json(arguments.json, {"submission": Path(arguments.submission).name, **result.to_dict()})
        if arguments.plot:
            from luna_monai.reports.figures import froc_figure, to_bytes  # the import takes a second

            write_bytes(arguments.plot, to_bytes(froc_figure(result)))


def read_seriesuids(path: str | Path) -> list[str]:
    """Read a list of scans in the format of LUNA16's ``seriesuids.csv``.

    Args:
        path: file with one series UID per line. A header line such as ``seriesuid`` is allowed.

    Returns:
        The series UIDs in the order of the file.

    Raises:
        LunaError: if the file is missing, empty or not text, or a line contains several values.
    """
    try:
        lines = (line.strip(' "\t') for line in Path(path).read_text(encoding="utf-8-sig").splitlines())
        found = [line for line in lines if line]
    except (OSError, UnicodeDecodeError) as error:
        raise LunaError(f"{path}: cannot be read ({reason_of(error)}); expected one series UID per line") from None
    like_uid = [bool(re.fullmatch(r"(?=.*\d).*\D.*", line)) for line in found]  # digits, and more than digits
    if found and found[0].lower() in ("seriesuid", *ALIASES):
        del found[0]
    elif found[1:] and like_uid == [False] + [True] * len(found[1:]):
        raise LunaError(f"{path}: line 1 is not a series UID like the others, found {found[0]!r}; remove the line")
    if wrong := [line for line in found if "," in line or ";" in line] or ["nothing"] * (not found):
        raise LunaError(f"{path}: expected one series UID per line, found {wrong[0]!r}")
    return list(dict.fromkeys(found))


def format_froc(result: FrocResult) -> str:
    """Format an evaluation for the console: counts, sensitivities with their interval, and a summary."""
    rates = [*map(rate_name, FALSE_POSITIVES_PER_SCAN), "mean (CPM)"]
    table = pd.DataFrame({"sensitivity": [*result.sensitivity, result.cpm]}, pd.Index(rates, name="at"))
    if result.interval is not None:
        table[["lower", "upper"]] = result.interval[["lower", "upper"]].to_numpy()
    counts = pd.Series(result.counts).rename(lambda name: name.replace("_", " "))
    text = table.reset_index().to_string(index=False, float_format="{:.4f}".format)
    return "\n\n".join([counts.to_string(), text, result.summary()])
