"""The output files of a prediction: CSV, JSON, 3D Slicer markups, volumes and DICOM objects, chosen by file ending."""

import errno
import importlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from luna_monai import files
from luna_monai.data.tables import COORDINATES
from luna_monai.detection.findings import SIZES, findings_table
from luna_monai.detection.grid import to_image
from luna_monai.errors import LunaError, reason_of
from luna_monai.extras import import_extra
from luna_monai.predictions.result import ScanPrediction, describe_findings, nearest_voxels
from luna_monai.scans.header import ScanHeader

#: Placeholder in the name of an output, which is replaced by the name of the scan: one file per scan.
PLACEHOLDER = "{seriesuid}"
#: Endings of volumes in the space of the scan.
VOLUMES = (".nii.gz", ".nii", ".nrrd")
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def write_predictions(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write a LUNA16 submission: a row per finding for proposed candidates, or per candidate for a given list."""
    tables = [findings_table(one.findings, one.seriesuid) if one.proposed else one.candidates for one in predictions]
    files.write_submission(path, pd.concat(tables))


def write_findings(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write a table of the findings that are shown: position, probability and size."""
    files.write_table(path, pd.concat([readable_table(one, one.shown) for one in predictions]))


def readable_table(prediction: ScanPrediction, count: int) -> pd.DataFrame:
    """Make a table of findings with rounded values.

    Args:
        prediction: prediction for a scan.
        count: number of findings, from the most probable one.

    Returns:
        The columns of :func:`~luna_monai.detection.findings.findings_table`; ``finding``, the number from 1;
        ``probability_calibrated``; and ``slice``, see :attr:`ScanPrediction.axial_slices`.
    """
    table, rows = findings_table(prediction.findings[:count], prediction.seriesuid), describe_findings(prediction)
    axis, slices = prediction.axial_slices
    table.insert(1, "finding", range(1, len(table) + 1))
    table.insert(6, "probability_calibrated", [row["probability_calibrated"] for row in rows[:count]])
    table["slice"] = [slices[row["voxel"][axis]][0] for row in rows[:count]]
    digits = dict.fromkeys(COORDINATES, 2) | {"probability": 6, "probability_calibrated": 6}
    return table.astype({"probability_calibrated": float}).round({**SIZES, **digits})


def write_json_file(path: Path, predictions: Sequence[ScanPrediction], **_: Any) -> None:
    """Write all results as JSON, without paths and without patient data.

    ``model`` contains name, SHA-256, version, thresholds and calibration. ``scans`` contains an entry for each scan:
    geometry (axes in the order x, y, z; LPS mm), SHA-256 of the HU, warnings, candidates and findings. Each candidate
    and finding has a ``position`` (x, y, z in LPS mm) and a ``voxel`` (z, y, x from 0, in the axis order of the file).
    """
    model = predictions[0].model
    facts = {name: getattr(model, name) for name in ("name", "sha256", "version", "thresholds")}
    facts["calibration"] = None if model.calibration is None else vars(model.calibration)
    scans = []
    for prediction in predictions:
        scan = {name: getattr(prediction, name) for name in ("seriesuid", "voxels_sha256", "proposed", "warnings")}
        positions = prediction.candidates[COORDINATES].to_numpy()
        candidates = prediction.candidates[["probability", "probability_calibrated"]].assign(position=list(positions))
        candidates["voxel"] = list(nearest_voxels(prediction.geometry, positions))
        scan |= {"candidates": candidates.to_dict("records"), "findings": describe_findings(prediction)}
        scan |= {"threshold": prediction.threshold, "findings_shown": prediction.shown}
        scans.append(vars(prediction.geometry) | scan)
    files.write_json(path, {"format": "luna-monai predictions", "model": facts, "scans": scans}, indent=1)


def write_markups(path: Path, prediction: ScanPrediction, **_: Any) -> None:
    """Write the findings of a scan that are shown as a point list of 3D Slicer (``.mrk.json``)."""
    points = []
    for number, row in enumerate(describe_findings(prediction)[: prediction.shown], start=1):
        size = "" if row["diameter_mm"] is None else f", {row['diameter_mm']:.1f} mm"
        label = f"{number}: {row['probability']:.3f}{size}"
        points.append({"id": str(number), "label": label, "position": row["position"], "locked": True})
    markups = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    files.write_json(path, {"@schema": MARKUPS_SCHEMA, "markups": [markups]}, indent=1)


def in_file_order(values: np.ndarray, prediction: ScanPrediction) -> sitk.Image:
    """Transform a volume from the grid of the prediction back to the grid of the file.

    Args:
        values: array (z, y, x) in the grid of the prediction, which is oriented to LPS and padded.
        prediction: prediction for the scan.

    Returns:
        An image with the size and geometry of the file.
    """
    geometry = prediction.geometry
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(np.ravel(geometry.direction).tolist())
    image = sitk.DICOMOrient(to_image(values, prediction.grid or geometry), code)
    image = sitk.RegionOfInterest(image, geometry.size, image.TransformPhysicalPointToIndex(geometry.origin))
    return to_image(sitk.GetArrayViewFromImage(image), geometry)


def label_map(prediction: ScanPrediction) -> sitk.Image:
    """Make a label map of the outlines of the findings that are shown.

    Args:
        prediction: prediction for a scan.

    Returns:
        Unsigned integers in the geometry of the file: 0, or the number of the finding, from 1. Where findings overlap,
        the more probable one is used. A finding without an outline has no voxels.
    """
    labels = np.zeros((prediction.grid or prediction.geometry).shape, np.uint8 if prediction.shown < 256 else np.uint16)
    for number in range(prediction.shown, 0, -1):
        finding = prediction.findings[number - 1]
        if finding.outline is not None and finding.outline_start is not None:
            labels[tuple((np.argwhere(finding.outline) + finding.outline_start).T)] = number
    return in_file_order(labels, prediction)


def write_label_map(path: Path, prediction: ScanPrediction, **_: Any) -> None:
    """Write the label map of a scan as NIfTI or NRRD; see :func:`label_map`."""
    write_volume(path, label_map(prediction))


def write_volume(path: Path, image: sitk.Image) -> None:
    """Write an image in the format of the ending of ``path``, compressed except for ``.nii``."""
    ending = files.ending_of(path, VOLUMES)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of the file, because the system's folder of temporary files may be small.
    with files.write_errors(path), tempfile.TemporaryDirectory(prefix=".luna.", dir=path.parent) as folder:
        whole = Path(folder) / f"volume{ending}"
        sitk.WriteImage(image, str(whole), useCompression=ending != ".nii")
        if sitk.Hash(sitk.ReadImage(str(whole))) != sitk.Hash(image):  # ITK does not report a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files.write_bytes(path, whole.read_bytes())


def write_dicom(
    path: Path, prediction: ScanPrediction, header: ScanHeader, *, anonymous: bool = False, segmented: bool = False
) -> bool:
    """Write a DICOM structured report (``.dcm``) or segmentation (``.seg.dcm``).

    Args:
        path: the file.
        prediction: prediction for a DICOM series.
        header: header of the series.
        anonymous: leave the tags of patient and study empty instead of copying them from the CT.
        segmented: True if a segmentation is written too, which the structured report then refers to.

    Returns:
        False if the segmentation is not written because there is no outline, else True.

    Raises:
        LunaError: if the scan is not a complete DICOM series, or the file cannot be written.
    """
    dicom_objects = importlib.import_module("luna_monai.predictions.dicom_objects")  # highdicom is an extra
    is_report, dataset = files.ending_of(path, FORMATS) == ".dcm", None
    try:
        with dicom_objects.without_pydicom_warnings():
            if segmented or not is_report:
                dataset = dicom_objects.make_segmentation(prediction, header, anonymous)
            if is_report:
                dataset = dicom_objects.make_report(prediction, header, anonymous, dataset)
    except (ValueError, TypeError, AttributeError) as error:  # highdicom refuses values that DICOM does not allow
        found = f"a tag of the CT is not valid for a DICOM object ({reason_of(error)})"
        raise LunaError(f"{header.path}: {found}; correct it, or empty the patient's tags (--anonymous)") from error
    if dataset is not None:
        buffer = io.BytesIO()
        dataset.save_as(buffer)
        files.write_bytes(path, buffer.getvalue())
    return dataset is not None


#: For each file ending, the function that writes it, and whether the file can contain several scans. The longest
#: matching ending is used. A function returns False if there was nothing to write.
FORMATS: dict[str, tuple[Callable[..., bool | None], bool]] = {
    ".csv": (write_predictions, True),
    ".findings.csv": (write_findings, True),
    ".json": (write_json_file, True),
    ".mrk.json": (write_markups, False),
    **dict.fromkeys(VOLUMES, (write_label_map, False)),
    **dict.fromkeys((".dcm", ".seg.dcm"), (write_dicom, False)),
}


def is_dicom(path: Path) -> bool:
    """Check whether an output is a DICOM object, which requires a DICOM series as input."""
    return files.ending_of(path, FORMATS).endswith(".dcm")


def is_of_one_scan(path: Path) -> bool:
    """Check whether an output contains one scan, so that it can be written as soon as this scan is classified."""
    return PLACEHOLDER in path.name or not FORMATS[files.ending_of(path, FORMATS)][1]


def for_scan(path: Path, seriesuid: str) -> Path:
    """Replace ``{seriesuid}`` in the name of an output."""
    return path.with_name(path.name.replace(PLACEHOLDER, files.file_name_of(seriesuid)))


def check_outputs(paths: Sequence[Path], scans: int) -> None:
    """Check the names of all outputs before the scans are read.

    Args:
        paths: the files.
        scans: number of scans.

    Raises:
        LunaError: if an ending is unknown, a file cannot be written, a package is missing, or a format that holds one
            scan is used for several.
    """
    for path in paths:
        files.check_file(path, FORMATS)
        if is_dicom(path):
            import_extra("highdicom", "dicom")
        if scans > 1 and is_of_one_scan(path) and PLACEHOLDER not in path.name:
            raise LunaError(f"{path}: this format holds one scan, found {scans}; put {PLACEHOLDER} into the file name")


def write_outputs(
    paths: Iterable[Path], predictions: Sequence[ScanPrediction], **options: Any
) -> tuple[list[Path], list[str]]:
    """Write predictions to all outputs. If one output fails, the others are still written.

    Args:
        paths: the files. If a name contains ``{seriesuid}``, one file per scan is written.
        predictions: predictions for one or more scans.
        options: ``header``, ``anonymous`` and ``segmented``, see :func:`write_dicom`.

    Returns:
        The files that were written, and error messages for the others.
    """
    written, problems = [], []
    for path in paths:
        write, holds_several = FORMATS[files.ending_of(path, FORMATS)]
        for part in [[one] for one in predictions] if PLACEHOLDER in path.name else [predictions]:
            one = for_scan(path, part[0].seriesuid)
            try:
                if write(one, part if holds_several else part[0], **options) is not False:
                    written.append(one)
            except LunaError as error:
                problems.append(f"cannot write {path.name}: {error}")
    return written, problems
