"""DICOM objects of a prediction, made with highdicom: a structured report (TID 1500) and a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.sr.codedict import codes

from luna_monai import __version__
from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.predictions.outputs import label_map
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.scans.dicom_slice import without_pydicom_warnings
from luna_monai.scans.scan import read_header
from luna_monai.scans.sources import ScanSource

hd = import_extra("highdicom", "dicom")
sr = hd.sr

#: Private coding scheme for codes that DICOM does not define (PS3.16: names of private schemes start with 99).
PRIVATE_SCHEME = "99LUNAMONAI"
#: Tags that identify the patient and the study. They are left empty on request.
PATIENT_TAGS = [
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
]
#: Tags that objects need to refer to the slices.
_REFERENCES = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
_IMAGE_TAGS = [
    *("SpecificCharacterSet", "Modality", "Rows", "Columns", "PixelSpacing", "SliceThickness", "InstanceNumber"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PositionReferenceIndicator"),
]


@without_pydicom_warnings()
def read_slices(files: Sequence[Path], source: Path, *, anonymous: bool = False) -> list[Dataset]:
    """Read the tags of the slices that DICOM objects copy or refer to.

    Args:
        files: the slices in the order of the volume.
        source: the scan, for error messages.
        anonymous: leave ``PATIENT_TAGS`` empty.

    Returns:
        A dataset for each slice, without pixels.

    Raises:
        LunaError: if the scan is not a DICOM series, or if the tags for study, series or frame of reference are
            missing or differ between slices.
    """
    if not files:
        raise LunaError(f"{source}: not a DICOM series, so no DICOM output is possible; use .json or .nii.gz instead")
    slices: list[Dataset] = []
    for path in files:
        header = pydicom.dcmread(path, specific_tags=[*_REFERENCES, *_IMAGE_TAGS, *PATIENT_TAGS])
        slices.append(header)
        for keyword in _REFERENCES:
            if not header.get(keyword) or (header[keyword] != slices[0][keyword] and "SOP" not in keyword):
                raise LunaError(f"{path}: {keyword} is missing or differs from {files[0]}; DICOM output needs it")
        for keyword in (*PATIENT_TAGS, "ReferringPhysicianName"):
            if anonymous or keyword not in header:
                setattr(header, keyword, "")
    return slices


def refusal(source: ScanSource) -> str | None:
    """Return the reason why no DICOM object can be written for a scan, or None if it can be written."""
    try:
        read_slices(read_header(source).files if source.path.is_dir() else (), source.path)
    except LunaError as error:
        return str(error)
    return None


def make_report(prediction: ScanPrediction, anonymous: bool, segmentation: Any) -> Any:
    """Make a Comprehensive 3D SR with a TID 1500 "Measurement Report" of the findings that are shown.

    Each finding is a measurement group with its probability (122157, DCM, without unit) and, if it has an outline,
    diameter, long and short axis (mm), volume (mm3) and mean attenuation (HU). The group refers to a segment of the
    segmentation (TID 1411) or, without a segmentation, to a point in the frame of reference (mm, LPS; TID 1410).

    Args:
        prediction: prediction for a DICOM series.
        anonymous: leave ``PATIENT_TAGS`` empty instead of copying them from the CT.
        segmentation: result of :func:`make_segmentation` for the same prediction; None for no segmentation.

    Returns:
        The ``Comprehensive3DSR``.

    Raises:
        LunaError: see :func:`read_slices`.

    Reference:
        DICOM PS3.16, TID 1500 "Measurement Report".
    """
    slices = read_slices(prediction.dicom_files, prediction.source, anonymous=anonymous)
    rows = enumerate(describe_findings(prediction)[: prediction.shown], start=1)
    groups = [_group(slices, segmentation, f"Finding {number}", row) for number, row in rows]
    if not groups:  # TID 1500 needs one
        name = sr.CodedConcept("number-of-findings", PRIVATE_SCHEME, "Number of findings")
        tracking = sr.TrackingIdentifier(identifier="Findings")
        measurements = [sr.Measurement(name, 0, codes.UCUM.NoUnits)]
        groups = [sr.MeasurementsAndQualitativeEvaluations(tracking, measurements=measurements)]
    device = sr.DeviceObserverIdentifyingAttributes(hd.UID(), "luna-monai")
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        procedure_reported=sr.CodedConcept("24627-2", "LN", "CT Chest"),
        imaging_measurements=groups,
    )
    shown = f"The {prediction.shown} most probable of {len(prediction.findings)} findings are listed."
    for comment in (*prediction.warnings, shown, "Research software. Not for clinical use."):
        item = sr.TextContentItem(codes.DCM.Comment, comment, sr.RelationshipTypeValues.CONTAINS)
        report[0].ContentSequence.append(item)
    return sr.Comprehensive3DSR(
        evidence=slices if segmentation is None else [*slices, segmentation],
        content=report,
        series_number=1000,
        series_description="Lung nodule findings",
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        is_complete=True,
        specific_character_set="ISO_IR 192",
        **_equipment(prediction),
    )


@lru_cache(maxsize=1)  # the report refers to it
def make_segmentation(prediction: ScanPrediction, anonymous: bool) -> Any:
    """Make a binary DICOM segmentation of the outlines of the findings that are shown.

    Segments are numbered from 1 without gaps, as DICOM requires. The label of a segment contains the number of the
    finding.

    Args:
        prediction: prediction for a DICOM series.
        anonymous: leave ``PATIENT_TAGS`` empty instead of copying them from the CT.

    Returns:
        The ``Segmentation``; None if no finding has an outline, because DICOM requires at least one segment.

    Raises:
        LunaError: see :func:`read_slices`.
    """
    slices = read_slices(prediction.dicom_files, prediction.source, anonymous=anonymous)
    labels = sitk.GetArrayFromImage(label_map(prediction))
    # Slices without an outline are omitted to save time.
    kept = np.flatnonzero(labels.any(axis=(1, 2)))
    if len(kept) == 0:
        return None
    used = np.bincount(labels[kept].ravel()) > 0
    segment_of = (np.cumsum(used) - 1).astype(labels.dtype)
    algorithm = hd.AlgorithmIdentificationSequence(
        name="luna-monai", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=segment,
            segment_label=f"Finding {number}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=hd.UID(),
            tracking_id=f"Finding {number}",
            anatomic_regions=[codes.SCT.Lung],
        )
        for segment, number in enumerate(np.flatnonzero(used)[1:], start=1)
    ]
    return hd.seg.Segmentation(
        source_images=[slices[index] for index in kept],
        pixel_array=segment_of[labels[kept]],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_number=1001,
        series_description="Lung nodule outlines",
        content_label="FINDINGS",
        **_equipment(prediction),
    )


def _equipment(prediction: ScanPrediction) -> dict[str, Any]:
    """Make the arguments that identify the new series and object, and the software."""
    return {
        "series_instance_uid": hd.UID(),
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "manufacturer": "luna-monai",
        "manufacturer_model_name": prediction.model.name[:64],
        "device_serial_number": prediction.model.sha256,
        "software_versions": __version__,
    }


def _group(slices: Sequence[Dataset], segmentation: Any, name: str, row: dict[str, Any]) -> Any:
    """Make the measurement group of a finding."""
    segments = segmentation.get_segment_numbers(tracking_id=name) if segmentation else []
    uid = segmentation.get_segment_description(segments[0]).tracking_uid if segments else hd.UID()
    nearest = slices[row["voxel"][0]]
    image = sr.SourceImageForMeasurement(nearest.SOPClassUID, nearest.SOPInstanceUID)
    values = {
        "probability": (codes.DCM.Probability, codes.UCUM.NoUnits),
        "diameter_mm": (codes.SCT.Diameter, codes.UCUM.Millimeter),
        "long_axis_mm": (codes.SCT.LongAxis, codes.UCUM.Millimeter),
        "short_axis_mm": (codes.SCT.ShortAxis, codes.UCUM.Millimeter),
        "volume_mm3": (codes.SCT.Volume, codes.UCUM.CubicMillimeter),
        "mean_hu": (codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit),
    }
    side = {"left": codes.SCT.Left, "right": codes.SCT.Right}.get(row["lung"])
    facts = {
        "tracking_identifier": sr.TrackingIdentifier(uid, name),
        "finding_type": codes.SCT.Nodule,
        "finding_sites": [sr.FindingSite(codes.SCT.Lung, laterality=side)],
        "measurements": [
            sr.Measurement(quantity, row[key], unit, referenced_images=[image])
            for key, (quantity, unit) in values.items()
            if row[key] is not None
        ],
    }
    if segments:
        uids = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
        series = sr.SourceSeriesForSegmentation(slices[0].SeriesInstanceUID)
        reference = sr.ReferencedSegment(*uids, segments[0], source_series=series)
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=reference, **facts)
    point = sr.ImageRegion3D(sr.GraphicTypeValues3D.POINT, np.array([row["position"]]), slices[0].FrameOfReferenceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=point, **facts)
