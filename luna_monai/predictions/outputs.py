"""The files that a prediction is written to, by their endings."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.predictions.result import ScanPrediction
from luna_monai.predictions.text_files import write_findings, write_json_file, write_markups, write_submission
from luna_monai.predictions.volumes import write_label_map

#: In the name of an output: the name of the scan, for a file of its own for each.
PLACEHOLDER = "{seriesuid}"


def _write_report(path: Path, predictions: Sequence[ScanPrediction], **options: Any) -> bool:
    from luna_monai.predictions.dicom_objects import write_structured_report

    return write_structured_report(path, predictions[0], **options)


def _write_segmentation(path: Path, predictions: Sequence[ScanPrediction], **options: Any) -> bool:
    from luna_monai.predictions.dicom_objects import write_segmentation

    return write_segmentation(path, predictions[0], anonymous=options["anonymous"])


#: By the ending of the file's name, of which the longest that fits counts: what writes it, and whether it holds several
#: scans. A writer returns whether there was something to write.
FORMATS = {
    ".csv": (write_submission, True),
    ".findings.csv": (write_findings, True),
    ".json": (write_json_file, True),
    ".mrk.json": (write_markups, False),
    ".nii.gz": (write_label_map, False),
    ".nii": (write_label_map, False),
    ".nrrd": (write_label_map, False),
    ".dcm": (_write_report, False),
    ".seg.dcm": (_write_segmentation, False),
}


def ending_of(path: Path) -> str:
    """Tell the kind of an output from its ending, a key of ``FORMATS``.

    Raises:
        LunaError: when the ending is not known.
    """
    name = path.name.lower()
    for ending in sorted(FORMATS, key=len, reverse=True):
        if name.endswith(ending) and name != ending:
            return ending
    raise LunaError(f"{path}: an output's name ends with {', '.join(FORMATS)}, which says what is written")


def is_dicom(path: Path) -> bool:
    """Tell whether an output is a DICOM object, which a scan must be DICOM for."""
    return ending_of(path).endswith(".dcm")


def check_writable(path: Path) -> None:
    """Check before the work begins that a file can be written.

    Raises:
        LunaError: when a folder is in the way, or its folder cannot be written to.
    """
    if path.is_dir():
        raise LunaError(f"{path}: a folder; an output is a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LunaError(
            f"{path}: cannot be written, because {folder} cannot be written to ({error.strerror})"
        ) from None


def check_outputs(paths: Sequence[Path], scans: int) -> None:
    """Check the names of outputs before the work begins.

    Args:
        paths: the files.
        scans: how many scans there are.

    Raises:
        LunaError: when an ending is not known, two are the same, a file cannot be written, a package is missing, or
            several scans would go to a file that holds one.
    """
    for path in paths:
        _, holds_several = FORMATS[ending_of(path)]
        check_writable(path)
        if is_dicom(path):
            import_extra("highdicom", "dicom")
        if paths.count(path) > 1:
            raise LunaError(f"{path}: named twice as an output")
        if scans > 1 and not holds_several and PLACEHOLDER not in path.name:
            raise LunaError(
                f"{path}: holds one scan, and there are {scans}; put {PLACEHOLDER} into its name for a file each"
            )


def write_outputs(
    paths: Iterable[Path], predictions: Sequence[ScanPrediction], *, anonymous: bool = False, segmented: bool = False
) -> tuple[list[Path], list[str]]:
    """Write predictions to outputs; one that cannot be written does not keep the others.

    Args:
        paths: the files; one with ``{seriesuid}`` in its name becomes a file for each scan.
        predictions: one or more scans.
        anonymous: whether the patient's tags are left out of DICOM objects.
        segmented: whether a segmentation is among the outputs, which reports refer to.

    Returns:
        The files that were written, each whole, and why others were not.
    """
    written, problems = [], []
    for path in paths:
        write, _ = FORMATS[ending_of(path)]
        for part in [[one] for one in predictions] if PLACEHOLDER in path.name else [predictions]:
            one = path.with_name(path.name.replace(PLACEHOLDER, file_name(part[0].seriesuid)))
            try:
                if write(one, part, anonymous=anonymous, segmented=segmented):
                    written.append(one)
            except LunaError as error:
                problems.append(f"{path.name} is not written: {error}")
    return written, problems


def file_name(seriesuid: str) -> str:
    """Make a part of a file's name of the name of a scan; different names stay different.

    Args:
        seriesuid: any text; what a file's name cannot hold becomes ``%`` and its number, as in web addresses.
    """
    return re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", seriesuid)
