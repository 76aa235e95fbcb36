"""The files that a prediction is written to, by their endings."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.predictions.result import ScanPrediction

#: In the name of an output: the name of the scan, for a file of its own for each.
PLACEHOLDER = "{seriesuid}"

#: By the ending of the file's name, of which the longest that fits counts: the module and the function that write it,
#: and whether it holds several scans. A writer returns False where there was nothing to write.
FORMATS = {
    ".csv": ("text_files", "write_submission", True),
    ".findings.csv": ("text_files", "write_findings", True),
    ".json": ("text_files", "write_json_file", True),
    ".mrk.json": ("text_files", "write_markups", False),
    ".nii.gz": ("volumes", "write_label_map", False),
    ".nii": ("volumes", "write_label_map", False),
    ".nrrd": ("volumes", "write_label_map", False),
    ".dcm": ("dicom_objects", "write_structured_report", False),
    ".seg.dcm": ("dicom_objects", "write_segmentation", False),
}


def ending_of(path: Path, endings: Iterable[str] = FORMATS) -> str:
    """Find the longest of some endings that the name of a file has.

    Raises:
        LunaError: when it has none of them.
    """
    name = path.name.lower()
    for ending in sorted(endings, key=len, reverse=True):
        if name.endswith(ending) and name != ending:
            return ending
    raise LunaError(f"{path}: the name of this file must end with {', '.join(endings)}")


def is_dicom(path: Path) -> bool:
    """Tell whether an output is a DICOM object, which a scan must be DICOM for."""
    return ending_of(path).endswith(".dcm")


def check_file(path: Path, endings: Iterable[str] = FORMATS) -> None:
    """Check before the work begins that a file can be written.

    Args:
        path: the file.
        endings: of which its name must have one.

    Raises:
        LunaError: when its name has another ending, a folder is in the way, or its folder cannot be written to.
    """
    if path.is_dir():
        raise LunaError(f"{path}: a folder; an output is a file")
    ending_of(path, endings)
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
        scans: the number of scans.

    Raises:
        LunaError: when an ending is not known, two are the same, a file cannot be written, a package is missing, or
            several scans would go to a file that holds one.
    """
    for path in paths:
        check_file(path)
        if is_dicom(path):
            import_extra("highdicom", "dicom")
        if paths.count(path) > 1:
            raise LunaError(f"{path}: named twice as an output")
        if scans > 1 and not FORMATS[ending_of(path)][2] and PLACEHOLDER not in path.name:
            raise LunaError(f"{path}: holds one scan, and there are {scans}; put {PLACEHOLDER} into its name")


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
        module, name, holds_several = FORMATS[ending_of(path)]
        write = getattr(importlib.import_module(f"luna_monai.predictions.{module}"), name)
        for part in [[one] for one in predictions] if PLACEHOLDER in path.name else [predictions]:
            one = path.with_name(path.name.replace(PLACEHOLDER, file_name(part[0].seriesuid)))
            content = part if holds_several else part[0]
            try:
                if write(one, content, anonymous=anonymous, segmented=segmented) is not False:
                    written.append(one)
            except LunaError as error:
                problems.append(f"{path.name} is not written: {error}")
    return written, problems


def file_name(seriesuid: str) -> str:
    """Turn the name of a scan into a part of a file name; different names stay different.

    Args:
        seriesuid: any text; a character that file names cannot hold becomes ``%`` and its number, as in web addresses.
    """
    return re.sub(r'[%/\\:*?"<>|\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", seriesuid)
