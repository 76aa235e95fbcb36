"""DICOM objects of a prediction, made with highdicom: a structured report (TID 1500) and a segmentation."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.sr.codedict import codes

from luna_monai import __version__
from luna_monai.errors import LunaError
from luna_monai.extras import import_extra
from luna_monai.predictions.outputs import label_map
from luna_monai.predictions.result import ScanPrediction, describe_findings
from luna_monai.scans.dicom import DicomHeader
from luna_monai.scans.dicom_slice import PATIENT_TAGS, REFERENCES, read_dicom_file, without_pydicom_warnings
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.sources import ScanSource

hd = import_extra("highdicom", "dicom")
sr = hd.sr

#: Private coding scheme for codes that DICOM does not define (PS3.16: names of private schemes start with 99).
PRIVATE_SCHEME = "99LUNAMONAI"
#: Texture of a nodule, with the codes of the DICOM conversion of LIDC-IDRI (https://github.com/QIICR/lidc2dicom).
TEXTURE = sr.CodedConcept("C41144", "NCIt", "Texture")
RADLEX = {"solid": "RID50151", "part-solid": "RID50152", "ground-glass": "RID50153"}


@lru_cache(maxsize=1)  # the report and the segmentation use the same tags
@without_pydicom_warnings()
def slice_tags(header: ScanHeader | ScanSource, *, anonymous: bool = True) -> list[Dataset]:
    """Collect the tags of the slices that DICOM objects copy or refer to.

    Args:
        header: header of a DICOM series.
        anonymous: leave ``PATIENT_TAGS`` empty instead of reading them from the first slice.

    Returns:
        A dataset for each slice, without pixels.

    Raises:
        LunaError: if the scan is not a DICOM series, or if the tags for study, series or frame of reference are
            missing or differ between slices.
    """
    if not isinstance(header, DicomHeader):
        raise LunaError(f"{header.path}: not a DICOM series, so no DICOM output is possible; use .json or .nii.gz")
    files = [one.file for one in header.slices]
    first, slices = files[0], [Dataset() for _ in files]
    patient = None if anonymous else read_dicom_file(first.path, PATIENT_TAGS)
    for file, tags in zip(files, slices, strict=True):
        for keyword in REFERENCES:
            if not (value := file.text(keyword)) or (value != first.text(keyword) and "SOP" not in keyword):
                found = f"{keyword} is missing or differs from {first.path}"
                raise LunaError(f"{file.path}: {found}; DICOM output needs it")
        tags.update(file.tags)
        tags.SpecificCharacterSet = "ISO_IR 192"  # highdicom does not copy all that the CT may use
        tags.SpacingBetweenSlices = header.geometry.spacing[2]  # else that of the slices in the segmentation
        if not file.text("SliceThickness"):
            tags.SliceThickness = header.geometry.spacing[2]
        for keyword in (*PATIENT_TAGS, "ReferringPhysicianName"):
            setattr(tags, keyword, patient.tags.get(keyword, "") if patient else "")
    return slices


def make_report(prediction: ScanPrediction, header: ScanHeader, anonymous: bool, segmentation: Any) -> Any:
    """Make a Comprehensive 3D SR with a TID 1500 "Measurement Report" of the findings that are shown.

    Each finding is a measurement group with its probability (122157, DCM, without unit) and, if it has an outline,
    diameter, long and short axis (mm), volume (mm3), mean attenuation (HU) and texture (solid, part-solid or
    ground-glass). The group refers to a segment of the segmentation (TID 1411) or, without a segmentation, to a point
    in the frame of reference (mm, LPS; TID 1410).

    Args:
        prediction: prediction for a DICOM series.
        header: header of the series.
        anonymous: leave ``PATIENT_TAGS`` empty instead of copying them from the CT.
        segmentation: result of :func:`make_segmentation` for the same prediction; None for no segmentation.

    Returns:
        The ``Comprehensive3DSR``.

    Raises:
        LunaError: see :func:`slice_tags`.

    Reference:
        DICOM PS3.16, TID 1500 "Measurement Report".
    """
    slices = slice_tags(header, anonymous=anonymous)
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
def make_segmentation(prediction: ScanPrediction, header: ScanHeader, anonymous: bool) -> Any:
    """Make a binary DICOM segmentation of the outlines of the findings that are shown.

    Segments are numbered from 1 without gaps, as DICOM requires. The label of a segment contains the number of the
    finding.

    Args:
        prediction: prediction for a DICOM series.
        header: header of the series.
        anonymous: leave ``PATIENT_TAGS`` empty instead of copying them from the CT.

    Returns:
        The ``Segmentation``; None if no finding has an outline, because DICOM requires at least one segment.

    Raises:
        LunaError: see :func:`slice_tags`.
    """
    slices = slice_tags(header, anonymous=anonymous)
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
    kind = row["attenuation"]
    textures = [sr.CodedConcept(RADLEX[kind], "RADLEX", f"{kind} pulmonary nodule")] if kind else []
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
        "qualitative_evaluations": [sr.QualitativeEvaluation(TEXTURE, texture) for texture in textures],
    }
    if segments:
        uids = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
        series = sr.SourceSeriesForSegmentation(slices[0].SeriesInstanceUID)
        reference = sr.ReferencedSegment(*uids, segments[0], source_series=series)
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=reference, **facts)
    point = sr.ImageRegion3D(sr.GraphicTypeValues3D.POINT, np.array([row["position"]]), slices[0].FrameOfReferenceUID)
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=point, **facts)
