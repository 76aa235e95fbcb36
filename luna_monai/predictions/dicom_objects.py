"""A prediction as DICOM objects: a structured report (TID 1500) and a segmentation, through highdicom."""

from __future__ import annotations

import copy
import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from luna_monai import __version__
from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.files import write_bytes
from luna_monai.predictions.outputs import label_map
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.scans.scan import read_header
from luna_monai.scans.sources import ScanSource

hd = import_extra("highdicom", "dicom")
sr = hd.sr

#: Designator of codes that DICOM does not have (PS3.16: private coding schemes begin with 99).
PRIVATE_SCHEME = "99LUNAMONAI"
#: Tags by which an archive finds the patient and the study; left empty on request.
PATIENT_TAGS = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
]
_NEEDED = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
_IMAGE_TAGS = [
    *("SpecificCharacterSet", "Modality", "Rows", "Columns", "PixelSpacing", "SliceThickness", "InstanceNumber"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator"),
]


def read_slices(files: Sequence[Path], source: Path, *, anonymous: bool = False) -> list[Dataset]:
    """Read what DICOM objects take over from the slices of a series.

    Args:
        files: the slices in the order of the volume.
        source: the scan, for messages.
        anonymous: whether ``PATIENT_TAGS`` are left empty.

    Returns:
        A dataset for each slice, without pixels.

    Raises:
        LunaError: when the scan is no DICOM series, or its slices do not say to which study, series and frame of
            reference they belong.
    """
    if not files:
        raise LunaError(
            f"{source}: a DICOM report or segmentation refers to DICOM slices, and this scan has none; choose .csv, "
            ".json, .mrk.json or .nii.gz"
        )
    slices: list[Dataset] = []
    for path in files:
        try:
            header = pydicom.dcmread(path, specific_tags=[*_NEEDED, *_IMAGE_TAGS, *PATIENT_TAGS])
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise LunaError(f"{path}: no readable DICOM slice ({' '.join(str(error).split())})") from None
        missing = [keyword for keyword in _NEEDED if not header.get(keyword)]
        if missing:
            raise LunaError(f"{path}: no {missing[0]} in its header, so no DICOM object can refer to {source}")
        for keyword in (*PATIENT_TAGS, "ReferringPhysicianName"):
            if anonymous or keyword not in header:
                setattr(header, keyword, "")
        slices.append(header)
        if any(header.get(keyword) != slices[0].get(keyword) for keyword in _NEEDED[2:]):
            raise LunaError(f"{path}: not the {', '.join(_NEEDED[2:])} of {files[0]}")
    return slices


def refusal(source: ScanSource) -> str | None:
    """Tell before the work begins why no DICOM object can be written about a scan; None when one can."""
    try:
        read_slices(read_header(source).files if source.path.is_dir() else (), source.path)
    except LunaError as error:
        return str(error)
    return None


def write_structured_report(
    path: Path, prediction: ScanPrediction, *, anonymous: bool = False, segmented: bool = False
) -> None:
    """Write a Comprehensive 3D SR with a TID 1500 "Measurement Report" about the findings that people are shown.

    Each finding is a measurement group with its probability (122157, DCM, without unit; once more by the method
    "Calibrated" where a calibration is known), and, where it has an outline, diameter, long and short axis (mm), volume
    (mm3) and mean attenuation (HU). The group refers to the segment of the segmentation that is written beside the
    report (TID 1411), or is a point in the frame of reference (mm, LPS; TID 1410).

    Args:
        path: the file.
        prediction: of a DICOM series.
        anonymous: whether ``PATIENT_TAGS`` are left empty instead of those of the CT.
        segmented: whether :func:`write_segmentation` writes the outlines of the same prediction.

    Raises:
        LunaError: as :func:`read_slices`, and when the file cannot be written.

    Reference:
        DICOM PS3.16, TID 1500 "Measurement Report".
    """
    slices, model = read_slices(prediction.dicom_files, prediction.source, anonymous=anonymous), prediction.model
    segments = _segment_numbers(prediction) if segmented else {}
    rows = enumerate(describe_findings(prediction)[: prediction.shown], start=1)
    groups = [_group(prediction, slices, number, row, segments.get(number)) for number, row in rows]
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid(prediction, "device"),
        name="luna-monai",
        manufacturer_name="luna-monai",
        model_name=model.name,
    )
    context = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=observer)
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=context),
        procedure_reported=sr.CodedConcept("24627-2", "LN", "CT Chest"),
        imaging_measurements=groups or [_no_findings(prediction)],
    )
    shown = f"The {prediction.shown} most probable of {len(prediction.findings)} findings are listed."
    for comment in (*prediction.warnings, shown, "Research software. Not for clinical use."):
        item = sr.TextContentItem(codes.DCM.Comment, comment, sr.RelationshipTypeValues.CONTAINS)
        report[0].ContentSequence.append(item)
    evidence = list(slices)
    if segments:  # the segmentation of the same prediction, whether it is written already or not
        reference = copy.deepcopy(slices[0])
        reference.SOPClassUID = SegmentationStorage
        reference.SOPInstanceUID = _uid(prediction, "segmentation")
        reference.SeriesInstanceUID = _uid(prediction, "segmentation series")
        evidence.append(reference)
    dataset = sr.Comprehensive3DSR(
        evidence=evidence,
        content=report,
        series_number=1000,
        series_description="Lung nodule findings",
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        is_complete=True,
        specific_character_set="ISO_IR 192",
        **_equipment(prediction, "report"),
    )
    _save(dataset, path)


def write_segmentation(path: Path, prediction: ScanPrediction, *, anonymous: bool = False, **_: Any) -> bool:
    """Write the outlines of the findings that people are shown as a binary DICOM segmentation.

    Segments are numbered from 1 without gaps, as DICOM wants; their label says which finding it is.

    Args:
        path: the file.
        prediction: of a DICOM series.
        anonymous: whether ``PATIENT_TAGS`` are left empty instead of those of the CT.

    Returns:
        False where no finding has an outline: a segmentation without segments is not DICOM, and none is written.

    Raises:
        LunaError: as :func:`read_slices`, and when the file cannot be written.
    """
    slices = read_slices(prediction.dicom_files, prediction.source, anonymous=anonymous)
    segments = _segment_numbers(prediction)
    if not segments:
        return False
    algorithm = hd.AlgorithmIdentificationSequence(
        name="luna-monai", family=codes.DCM.ArtificialIntelligence, version=prediction.model.version or __version__
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=segment,
            segment_label=f"Finding {number}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=_uid(prediction, f"finding {number}"),
            tracking_id=f"Finding {number}",
            anatomic_regions=[codes.SCT.Lung],
        )
        for number, segment in segments.items()
    ]
    labels = sitk.GetArrayFromImage(label_map(prediction))
    # Most slices have no outline; highdicom need not look at them.
    kept = np.flatnonzero(labels.any(axis=(1, 2)))
    segment_of = np.zeros(prediction.shown + 1, dtype=labels.dtype)
    segment_of[list(segments)] = list(segments.values())
    dataset = hd.seg.Segmentation(
        source_images=[slices[index] for index in kept],
        pixel_array=segment_of[labels[kept]],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_number=1001,
        series_description="Lung nodule outlines",
        content_label="FINDINGS",
        **_equipment(prediction, "segmentation"),
    )
    _save(dataset, path)
    return True


def _segment_numbers(prediction: ScanPrediction) -> dict[int, int]:
    """Number the segments, by the number of their finding."""
    shown = enumerate(prediction.findings[: prediction.shown], start=1)
    outlined = [number for number, finding in shown if finding.outline is not None]
    return {number: segment for segment, number in enumerate(outlined, start=1)}


def _uid(prediction: ScanPrediction, name: str) -> Any:
    return hd.UID.from_uuid(str(uuid.uuid5(prediction.run, name)))


def _equipment(prediction: ScanPrediction, kind: str) -> dict[str, Any]:
    return {
        "series_instance_uid": _uid(prediction, f"{kind} series"),
        "sop_instance_uid": _uid(prediction, kind),
        "instance_number": 1,
        "manufacturer": "luna-monai",
        "manufacturer_model_name": prediction.model.name[:64],
        "device_serial_number": prediction.model.sha256[:64],
        "software_versions": __version__,
    }


def _group(
    prediction: ScanPrediction, slices: Sequence[Dataset], number: int, row: dict[str, Any], segment: int | None
) -> Any:
    """Make the measurement group of a finding."""
    nearest = slices[min(row["voxel"][0], len(slices) - 1)]
    image = sr.SourceImageForMeasurement(nearest.SOPClassUID, nearest.SOPInstanceUID)
    calibrated = sr.CodedConcept("calibrated", PRIVATE_SCHEME, "Calibrated on validation scans")
    mm = codes.UCUM.Millimeter
    values = [
        (codes.DCM.Probability, row["probability"], codes.UCUM.NoUnits, {}),
        (codes.DCM.Probability, row["probability_calibrated"], codes.UCUM.NoUnits, {"method": calibrated}),
        (codes.SCT.Diameter, row["diameter_mm"], mm, {}),
        (codes.SCT.LongAxis, row["long_axis_mm"], mm, {}),
        (codes.SCT.ShortAxis, row["short_axis_mm"], mm, {}),
        (codes.SCT.Volume, row["volume_mm3"], codes.UCUM.CubicMillimeter, {}),
        (codes.DCM.AttenuationCoefficient, row["mean_hu"], codes.UCUM.HounsfieldUnit, {"derivation": codes.SCT.Mean}),
    ]
    lung = {"left": codes.SCT.Left, "right": codes.SCT.Right}.get(row["lung"])
    facts = _facts(prediction, f"finding {number}", f"Finding {number}", lung)
    facts["measurements"] = [
        sr.Measurement(name, float(value), unit, referenced_images=[image], **options)
        for name, value, unit, options in values
        if value is not None
    ]
    if segment is not None:
        series = sr.SourceSeriesForSegmentation(slices[0].SeriesInstanceUID)
        uid = _uid(prediction, "segmentation")
        reference = sr.ReferencedSegment(SegmentationStorage, uid, segment, source_series=series)
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=reference, **facts)
    point = sr.ImageRegion3D(sr.GraphicTypeValues3D.POINT, np.array([row["position"]]), slices[0].FrameOfReferenceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=point, **facts)


def _no_findings(prediction: ScanPrediction) -> Any:
    """TID 1500 wants at least one group: it says that there are none."""
    name = sr.CodedConcept("number-of-findings", PRIVATE_SCHEME, "Number of findings")
    measurements = [sr.Measurement(name, 0, codes.UCUM.NoUnits)]
    facts = _facts(prediction, "no finding", "Findings", None)
    return sr.MeasurementsAndQualitativeEvaluations(measurements=measurements, **facts)


def _facts(prediction: ScanPrediction, name: str, identifier: str, laterality: Any) -> dict[str, Any]:
    """Say what a measurement group is about, and what has measured it."""
    model = prediction.model
    return {
        "tracking_identifier": sr.TrackingIdentifier(_uid(prediction, name), identifier),
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [sr.FindingSite(codes.SCT.Lung, laterality=laterality)],
        "algorithm_id": sr.AlgorithmIdentification(
            name=f"luna-monai, {model.name}", version=model.version, parameters=[f"weights SHA-256 {model.sha256}"]
        ),
    }


def _save(dataset: Dataset, path: Path) -> None:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    write_bytes(path, buffer.getvalue())
