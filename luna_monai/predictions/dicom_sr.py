"""A prediction as a DICOM structured report that archives and viewers read: TID 1500, through highdicom."""

from __future__ import annotations

import io
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luna_monai import __version__
from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.result import ModelFacts, ScanPrediction

if TYPE_CHECKING:
    from highdicom.sr import Comprehensive3DSR
    from pydicom import Dataset

#: Designator of our own codes; DICOM has none for what they say (PS3.16, private coding schemes begin with 99).
PRIVATE_SCHEME = "99LUNAMONAI"
#: A person reads a structured report: hundreds of marks that are nothing would hide those that are.
MAX_CANDIDATES = 100
#: What is taken over from a slice: where the report belongs, and nothing about the patient.
_SLICE_TAGS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
#: What a report has to have, and may leave empty (type 2).
_LEFT_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip


def check_highdicom() -> None:
    """Check that highdicom is installed.

    Raises:
        LunaError: when it is not.
    """
    _highdicom()


def check_structured_report(prediction: ScanPrediction) -> None:
    """Check that a structured report can refer to the scan of a prediction.

    Args:
        prediction: of any scan.

    Raises:
        LunaError: when it is no DICOM series.
    """
    if not prediction.dicom_files:
        raise LunaError(
            f"{prediction.source}: a DICOM structured report refers to DICOM slices, and this scan has none; "
            "choose .csv, .json or .mrk.json"
        )


def write_structured_report(prediction: ScanPrediction, path: str | Path, max_candidates: int = MAX_CANDIDATES) -> None:
    """Write a prediction as a DICOM structured report; see :func:`structured_report`.

    Args:
        prediction: of a DICOM series.
        path: the file; it is there whole or not at all.
        max_candidates: only so many of the most probable are reported.

    Raises:
        LunaError: as :func:`structured_report`, and when the file can't be written.
    """
    buffer = io.BytesIO()
    structured_report(prediction, max_candidates).save_as(buffer)
    write_bytes(path, buffer.getvalue())


def structured_report(prediction: ScanPrediction, max_candidates: int = MAX_CANDIDATES) -> Comprehensive3DSR:
    """Make a Comprehensive 3D SR with a TID 1500 "Measurement Report".

    Each candidate is a measurement group (TID 1410, finding "Nodule", site "Lung"), the most probable first: a point in
    the frame of reference of the series (mm, LPS as always in DICOM), the slice it lies in, the probability as
    (122157, DCM, "Probability") without unit, once more by the method "Calibrated" where a calibration is known, and
    the model by TID 4019. What a reader must know stands in comments at the end.

    The report carries no identifying tag: patient name, ID, birth date, sex, dates and accession number are empty. An
    archive finds its place by the Study Instance UID.

    Args:
        prediction: of a DICOM series.
        max_candidates: only so many of the most probable are reported, and a comment says so.

    Returns:
        The report, unverified and preliminary.

    Raises:
        LunaError: when highdicom is not installed, the scan is no DICOM series, or its slices do not say to which
            study and frame of reference they belong.

    Reference:
        DICOM PS3.16, TID 1500 "Measurement Report", TID 1410 "Planar ROI Measurements and Qualitative Evaluations".
    """
    check_structured_report(prediction)
    highdicom = _highdicom()
    from pydicom.sr.codedict import codes

    slices = [_read_slice(path, prediction.source) for path in prediction.dicom_files]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if len({slice_.get(keyword) for slice_ in slices}) > 1:
            raise LunaError(f"{prediction.source}: the slices have more than one {keyword}; keep one series of them")
    report = highdicom.sr.MeasurementReport(
        observation_context=_observer(prediction.model),
        # The code of CT Chest; pydicom knows it by the name of the report alone.
        procedure_reported=highdicom.sr.CodedConcept("24627-2", "LN", "CT Chest"),
        imaging_measurements=_groups(prediction, slices, max_candidates) or [_no_candidates(prediction.model)],
    )
    for comment in (
        *prediction.warnings,
        _what_is_listed(prediction, max_candidates),
        "For research; not for clinical use.",
    ):
        report[0].ContentSequence.append(
            highdicom.sr.TextContentItem(codes.DCM.Comment, comment, highdicom.sr.RelationshipTypeValues.CONTAINS)
        )
    return highdicom.sr.Comprehensive3DSR(
        evidence=slices,
        content=report,
        series_instance_uid=highdicom.UID(),
        series_number=1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="luna-monai",
        manufacturer_model_name=prediction.model.name[:64],
        device_serial_number=prediction.model.sha256[:64],
        software_versions=__version__,
        series_description="Lung nodule candidates",
        specific_character_set="ISO_IR 192",
        content_qualification=highdicom.ContentQualificationValues.RESEARCH,
        is_complete=True,
    )


def _highdicom() -> Any:
    from luna_monai.networks.runtimes import import_extra

    return import_extra("highdicom", "dicom")


def _read_slice(path: Path, source: Path) -> Dataset:
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_SLICE_TAGS))
    except (OSError, pydicom.errors.InvalidDicomError) as error:
        raise LunaError(f"{path}: no readable DICOM slice ({' '.join(str(error).split())})") from None
    slice_ = pydicom.Dataset()
    for keyword in _SLICE_TAGS:
        if not header.get(keyword):
            raise LunaError(f"{path}: no {keyword} in its header, so no report can refer to {source}")
        setattr(slice_, keyword, header.get(keyword))
    for keyword in _LEFT_EMPTY:
        setattr(slice_, keyword, "")
    return slice_


def _groups(prediction: ScanPrediction, slices: Sequence[Dataset], max_candidates: int) -> list[Any]:
    import numpy as np
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes

    table = prediction.candidates.head(max_candidates)
    calibrated = sr.CodedConcept("calibrated", PRIVATE_SCHEME, "Calibrated on validation scans")
    algorithm = _algorithm(prediction.model)
    groups = []
    for number, (point, index_z, probability, probability_calibrated) in enumerate(
        zip(
            table[COORDINATES].to_numpy(dtype=float),
            table["index_z"],
            table["probability"],
            table["probability_calibrated"],
            strict=True,
        ),
        start=1,
    ):
        # One file may hold all slices; then it is the file that is meant.
        nearest = slices[min(max(int(index_z), 0), len(slices) - 1)]
        image = sr.SourceImageForMeasurement(nearest.SOPClassUID, nearest.SOPInstanceUID)
        values: list[tuple[float, Any]] = [(float(probability), None)]
        if math.isfinite(probability_calibrated):
            values.append((float(probability_calibrated), calibrated))
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(UID(), f"Candidate {number}"),
                referenced_region=sr.ImageRegion3D(
                    sr.GraphicTypeValues3D.POINT, np.asarray(point)[None], slices[0].FrameOfReferenceUID
                ),
                finding_type=codes.SCT.Nodule,
                finding_sites=[sr.FindingSite(codes.SCT.Lung)],
                algorithm_id=algorithm,
                measurements=[
                    sr.Measurement(
                        codes.DCM.Probability, value, codes.UCUM.NoUnits, method=method, referenced_images=[image]
                    )
                    for value, method in values
                ],
            )
        )
    return groups


def _no_candidates(model: ModelFacts) -> Any:
    """TID 1500 wants at least one group: it says that there are none."""
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes

    name = sr.CodedConcept("number-of-candidates", PRIVATE_SCHEME, "Number of candidates")
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(UID(), "Candidates"),
        finding_type=codes.SCT.Nodule,
        finding_sites=[sr.FindingSite(codes.SCT.Lung)],
        algorithm_id=_algorithm(model),
        measurements=[sr.Measurement(name, 0, codes.UCUM.NoUnits)],
    )


def _observer(model: ModelFacts) -> Any:
    from highdicom import UID, sr
    from pydicom.sr.codedict import codes

    # The same weights are the same device, wherever they run.
    device = UID.from_uuid(str(uuid.uuid5(uuid.NAMESPACE_OID, f"luna-monai {model.version} {model.sha256}")))
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=device, name="luna-monai", manufacturer_name="luna-monai", model_name=model.name
            ),
        )
    )


def _algorithm(model: ModelFacts) -> Any:
    from highdicom import sr

    return sr.AlgorithmIdentification(
        name=f"luna-monai, {model.name}", version=model.version, parameters=[f"weights SHA-256 {model.sha256}"]
    )


def _what_is_listed(prediction: ScanPrediction, max_candidates: int) -> str:
    origin = "proposals of luna-monai" if prediction.proposed else "given to luna-monai"
    total = len(prediction.candidates)
    listed = f"the {max_candidates} most probable of {total}" if total > max_candidates else f"all {total}"
    return f"Candidates are {origin}; {listed} are listed."
