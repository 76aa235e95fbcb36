"""A prediction as DICOM objects: a structured report (TID 1500) and a segmentation, through highdicom."""

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
#: What an object refers to: of each slice, and of the whole series.
_REFERENCES = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
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
        raise LunaError(f"{source}: DICOM objects refer to DICOM slices, and this scan has none; choose .json or .nii")
    slices: list[Dataset] = []
    for path in files:
        header = pydicom.dcmread(path, specific_tags=[*_REFERENCES, *_IMAGE_TAGS, *PATIENT_TAGS])
        slices.append(header)
        for keyword in _REFERENCES:
            if not header.get(keyword) or (header[keyword] != slices[0][keyword] and "SOP" not in keyword):
                raise LunaError(f"{path}: no {keyword}, or not that of {files[0]}, so no DICOM object can refer to it")
        for keyword in (*PATIENT_TAGS, "ReferringPhysicianName"):
            if anonymous or keyword not in header:
                setattr(header, keyword, "")
    return slices


def refusal(source: ScanSource) -> str | None:
    """Tell before the work begins why no DICOM object can be written about a scan; None when one can."""
    try:
        read_slices(read_header(source).files if source.path.is_dir() else (), source.path)
    except LunaError as error:
        return str(error)
    return None


def make_report(prediction: ScanPrediction, anonymous: bool, segmentation: Any) -> Any:
    """Make a Comprehensive 3D SR with a TID 1500 "Measurement Report" about the findings that people are shown.

    Each finding is a measurement group with its probability (122157, DCM, without unit), and, where it has an outline,
    diameter, long and short axis (mm), volume (mm3) and mean attenuation (HU). The group refers to a segment of the
    segmentation (TID 1411), or is a point in the frame of reference (mm, LPS; TID 1410).

    Args:
        prediction: of a DICOM series.
        anonymous: whether ``PATIENT_TAGS`` are left empty instead of those of the CT.
        segmentation: what :func:`make_segmentation` made of the same prediction; None without.

    Returns:
        The object.

    Raises:
        LunaError: as :func:`read_slices`.

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
    """Make a binary DICOM segmentation of the outlines of the findings that people are shown.

    Segments are numbered from 1 without gaps, as DICOM wants; their label says which finding it is.

    Args:
        prediction: of a DICOM series.
        anonymous: whether ``PATIENT_TAGS`` are left empty instead of those of the CT.

    Returns:
        The object; None where no finding has an outline: a segmentation without segments is not DICOM.

    Raises:
        LunaError: as :func:`read_slices`.
    """
    slices = read_slices(prediction.dicom_files, prediction.source, anonymous=anonymous)
    labels = sitk.GetArrayFromImage(label_map(prediction))
    # Most slices have no outline; highdicom need not look at them.
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
    """Say which new series and object it is, and what has made it."""
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
