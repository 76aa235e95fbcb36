"""The files that a prediction is written to, by their endings."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.dicom_sr import check_highdicom, check_structured_report, write_structured_report
from luna_monai.predictions.json_file import write_json_file
from luna_monai.predictions.markups import write_markups
from luna_monai.predictions.result import ScanPrediction

#: LUNA16's form of a submission.
SUBMISSION_COLUMNS = ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
#: In the name of an output: what a scan is called, for a file of its own for each.
PLACEHOLDER = "{seriesuid}"


def write_submission(path: str | Path, predictions: Sequence[ScanPrediction]) -> None:
    """Write the candidates of all scans as LUNA16 wants a submission; the probability is that of the network.

    Args:
        path: the CSV file.
        predictions: one or more scans.

    Raises:
        LunaError: when the file can't be written.
    """
    table = pd.concat([prediction.candidates[SUBMISSION_COLUMNS] for prediction in predictions])
    write_bytes(path, table.to_csv(index=False).encode())


def _write_dicom(path: Path, predictions: Sequence[ScanPrediction]) -> None:
    for prediction in predictions:
        write_structured_report(prediction, path)


class Format(NamedTuple):
    """A kind of output.

    Attributes:
        write: writes the predictions into a file.
        many: whether one file can hold several scans.
        ready: raises when what it needs is not installed.
        fits: raises when a scan can't be written so.
    """

    write: Callable[[Path, Sequence[ScanPrediction]], None]
    many: bool
    ready: Callable[[], object] = lambda: None
    fits: Callable[[ScanPrediction], object] = lambda prediction: None


#: By the ending of the file's name; of several that fit, the longest counts.
FORMATS = {
    ".csv": Format(write_submission, many=True),
    ".json": Format(write_json_file, many=True),
    ".mrk.json": Format(write_markups, many=False),
    ".dcm": Format(_write_dicom, many=False, ready=check_highdicom, fits=check_structured_report),
}


def format_of(path: str | Path) -> Format:
    """Tell the kind of an output from its ending.

    Args:
        path: the file.

    Returns:
        What writes it.

    Raises:
        LunaError: when the ending is not known.
    """
    name = Path(path).name.lower()
    for ending in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(ending) and name != ending:
            return FORMATS[ending]
    raise LunaError(f"{path}: an output's name ends with {', '.join(FORMATS)}, which says what is written")


def check_outputs(paths: Sequence[str | Path], scans: int) -> None:
    """Check the names of outputs before the work begins.

    Args:
        paths: the files.
        scans: how many scans there are.

    Raises:
        LunaError: when an ending is not known, two are the same, a folder is in the way or can't be written to, a
            package is missing, or several scans would go to a file that holds one.
    """
    for number, path in enumerate(paths):
        kind = format_of(path)
        kind.ready()
        if Path(path).is_dir():
            raise LunaError(f"{path}: a folder; an output is a file")
        folder = next(parent for parent in Path(path).absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise LunaError(f"{path}: can't be written, because {folder} is no folder that may be written to")
        if path in paths[:number]:
            raise LunaError(f"{path}: named twice as an output")
        if scans > 1 and not kind.many and PLACEHOLDER not in Path(path).name:
            raise LunaError(
                f"{path}: holds one scan, and there are {scans}; put {PLACEHOLDER} into its name for a file each"
            )


def check_prediction(paths: Sequence[str | Path], prediction: ScanPrediction) -> None:
    """Check that a scan can be written to all outputs, before any is.

    Args:
        paths: the files.
        prediction: of the scan.

    Raises:
        LunaError: when it can't, as a DICOM structured report about a scan that is not DICOM.
    """
    for path in paths:
        format_of(path).fits(prediction)


def write_outputs(paths: Sequence[str | Path], predictions: Sequence[ScanPrediction]) -> list[Path]:
    """Write predictions to all outputs.

    Args:
        paths: the files; one with ``{seriesuid}`` in its name becomes a file for each scan.
        predictions: one or more scans.

    Returns:
        The files that were written, each whole.

    Raises:
        LunaError: when a file can't be written.
    """
    written = []
    for path in map(Path, paths):
        write = format_of(path).write
        if PLACEHOLDER in path.name:
            for prediction in predictions:
                name = prediction.seriesuid.replace("/", "_").replace("\\", "_")  # a UID is whatever a file says
                one = path.with_name(path.name.replace(PLACEHOLDER, name))
                write(one, [prediction])
                written.append(one)
        else:
            write(path, predictions)
            written.append(path)
    return written
