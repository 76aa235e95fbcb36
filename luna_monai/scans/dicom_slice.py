"""One DICOM file: its tags, which are checked, and its pixels in HU.

Only tags that locate and rescale the voxels are read, and those that other DICOM objects need to refer to the slice.
Tags that identify a patient are read only on request.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import uid
from pydicom.multival import MultiValue

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.itk import itk_reader
from luna_monai.scans.voxels import AIR, LARGEST

#: SOP classes of CTs. The last two store all slices in one file.
CTS = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
#: First bytes of DICOM files without the preamble of part 10 of the standard: an element of group 2 or 8.
BARE_DICOM = (b"\2\0", b"\10\0")
_TIMES = ["AcquisitionTime", "ContentTime"]
#: Tags in which images of several volumes in one series may differ, in the order in which they are compared.
VOLUME_TAGS = ["TemporalPositionIdentifier", "AcquisitionNumber", "ImageType", "ConvolutionKernel", *_TIMES]
_PADDING = ["PixelPaddingValue", "PixelPaddingRangeLimit"]
_NEEDED = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"]
#: Tags that other DICOM objects need to refer to the slice.
REFERENCES = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]
_STUDY = ["StudyDate", "StudyTime", "StudyID", "AccessionNumber"]
#: Tags that identify the patient and the study.
PATIENT_TAGS = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", *_STUDY]
_PIXELS = ["SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"]
_RESCALE = ["RescaleSlope", "RescaleIntercept"]
_SERIES = ["Modality", "SliceThickness", "PositionReferenceIndicator", "InstanceNumber", "NumberOfFrames"]
_TAGS = [*REFERENCES, *_SERIES, *_NEEDED, *_PIXELS, *_RESCALE, *_PADDING, *VOLUME_TAGS]


@contextmanager
def without_pydicom_warnings() -> Iterator[None]:
    """Hide the warnings of pydicom, such as those about UIDs with leading zeros. They do not name the file."""
    # Each block has its own filter, because several threads read files. It rejects all records of other loggers.
    logger, log_filter = logging.getLogger("pydicom"), logging.Filter("luna_monai")
    logger.addFilter(log_filter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(log_filter)


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file of any kind.

    Attributes:
        path: the file.
        tags: the tags that were read, without those that the file does not contain, and its file meta information.
        offset: number of bytes before the pixels.
    """

    path: Path
    tags: pydicom.Dataset
    offset: int

    @without_pydicom_warnings()
    def text(self, keyword: str) -> str:
        """Return the value of a tag as text; empty if the tag is missing or has no value."""
        try:
            value = self.tags.get(keyword)
        except (ValueError, TypeError, OverflowError):  # not valid for the tag; return it undecoded
            value = self.tags.get_item(keyword).value.decode("latin-1").strip(" \0")
        if isinstance(value, bytes):  # implicit VR does not define whether padding is signed
            value = int.from_bytes(value, "little")
        if isinstance(value, (MultiValue, list)):
            return "\\".join(map(str, value))
        return "" if value is None else str(value)

    def numbers(self, keyword: str, count: int = 1, default: str = "") -> list[float]:
        """Return the numbers in a tag.

        Args:
            keyword: the tag.
            count: how many numbers the tag must contain.
            default: text to use if the tag is missing.

        Raises:
            LunaError: when the tag does not contain ``count`` numbers below ``LARGEST``.
        """
        text = self.text(keyword) or default
        try:
            values = [float(part) for part in text.split("\\")]
        except ValueError:
            values = []
        if len(values) != count or not (np.abs(values) < LARGEST).all():
            raise LunaError(f"{self.path}: {keyword} must be {count} decimal number{'s' * (count > 1)}, found {text!r}")
        return values

    @property
    def sop_class(self) -> uid.UID:
        """SOP Class UID, the type of the DICOM object."""
        return uid.UID(self.text("SOPClassUID") or str(self.tags.file_meta.get("MediaStorageSOPClassUID", "")))


@without_pydicom_warnings()
def read_dicom_file(path: Path, tags: Sequence[str] = ()) -> DicomFile | None:
    """Read the tags of a DICOM file.

    Args:
        path: any file.
        tags: more tags to read.

    Returns:
        The file; None if it is not a DICOM file.

    Raises:
        LunaError: when the file cannot be read, or its suffix is ``.dcm`` and it is not a DICOM file.
    """
    is_dicom = path.suffix.lower() == ".dcm" and not path.name.startswith(".")
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
            if head[128:] == b"DICM" or head[:2] in BARE_DICOM:
                stream.seek(0)
                found = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[*_TAGS, *tags], force=True)
                # The header of the element has 12 bytes with explicit VR, else 8. The transfer syntax may be wrong.
                place, kind = stream.tell(), stream.read(6)[4:]
                file = DicomFile(path, found, place + (12 if kind in (b"OB", b"OW", b"UN") else 8))
                if file.sop_class:
                    return file
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception:  # pydicom raises many types
        is_dicom = is_dicom or head[128:] == b"DICM"
    if is_dicom:
        raise LunaError(f"{path}: a damaged DICOM slice; copy it again, or remove it if it is not part of the scan")
    return None


@dataclass(frozen=True, eq=False)
class Slice:
    """A CT slice whose tags have been checked.

    Attributes:
        file: the DICOM file.
        geometry: geometry of the slice, as a volume of one slice that is 1 mm thick.
        dtype: type of the stored values, before rescaling.
        bits: number of bits of a stored value.
        slope: factor from stored values to HU.
        intercept: HU of the stored value 0.
        padding: stored values of pixels without data, or the two ends of their range.
        offset: number of bytes before the pixels; None if they are compressed.
    """

    file: DicomFile
    geometry: Geometry
    dtype: np.dtype
    bits: int
    slope: float
    intercept: float
    padding: list[int]
    offset: int | None

    @classmethod
    def check(cls, file: DicomFile) -> Slice:
        """Check the tags of a slice.

        Args:
            file: a CT image.

        Returns:
            The slice.

        Raises:
            LunaError: when a tag is missing, damaged or not valid for a CT, or the file is truncated.
        """
        if file.sop_class in CTS[1:] or file.text("NumberOfFrames") not in ("", "0", "1"):
            raise LunaError(f"{file.path}: multi-frame CTs (all slices in one file) cannot be read; convert to NIfTI")
        if missing := [keyword for keyword in _NEEDED if not file.text(keyword)]:
            raise LunaError(f"{file.path}: missing tags: {', '.join(missing)}; export the series again")
        allocated = file.text("BitsAllocated")
        (samples,), (bits,) = file.numbers("SamplesPerPixel", 1, "1"), file.numbers("BitsStored", 1, allocated)
        if samples != 1 or allocated not in ("8", "16", "32") or not 1 <= bits <= int(allocated):
            found = f"{samples:g} of {allocated} bits, {bits:g} of them stored"
            raise LunaError(f"{file.path}: a CT has 1 sample of 8, 16 or 32 bits per pixel, found {found}")
        (rows,), (columns,) = file.numbers("Rows"), file.numbers("Columns")
        y_step, x_step = file.numbers("PixelSpacing", 2)
        x, y = np.reshape(file.numbers("ImageOrientationPatient", 6), (2, 3))
        axes = np.stack([x, y, np.cross(x, y)], axis=1)
        position = file.numbers("ImagePositionPatient", 3)
        geometry = Geometry.from_header((columns, rows, 1), (x_step, y_step, 1), position, axes, source=file.path)
        syntax = uid.UID(str(file.tags.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)))
        kind = "u" if file.text("PixelRepresentation") in ("", "0") else "i"
        dtype = np.dtype(f"{'>' if syntax == uid.ExplicitVRBigEndian else '<'}{kind}{int(allocated) // 8}")
        padding = [file.numbers(keyword) for keyword in _PADDING if file.text(keyword)]
        (slope,), (intercept,) = file.numbers("RescaleSlope", 1, "1"), file.numbers("RescaleIntercept", 1, "0")
        is_native = syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
        needed = int(rows * columns) * dtype.itemsize
        if slope == 0 or (is_native and file.path.stat().st_size - file.offset < needed):
            reason = "its RescaleSlope is 0" if slope == 0 else "it is truncated"
            raise LunaError(f"{file.path}: a damaged DICOM slice ({reason}); copy it again")
        # Programs that write DICOM disagree on whether padding is signed; the type of the pixels decides.
        ends = np.array(padding, dtype=np.int64).astype(dtype).ravel().tolist()
        return cls(file, geometry, dtype, int(bits), slope, intercept, ends, file.offset if is_native else None)

    def read(self) -> np.ndarray:
        """Read the pixels.

        Photometric interpretation concerns the display of stored values, not their meaning, so ``MONOCHROME1`` does not
        change the HU.

        Returns:
            HU (y, x), float64. Padding is set to air.

        Raises:
            LunaError: when the pixels are damaged.
        """
        path, shape = self.file.path, self.geometry.shape[1:]
        raw = self._decoded() if self.offset is None else np.memmap(path, self.dtype, "r", self.offset, shape)
        spare = self.dtype.itemsize * 8 - self.bits  # the bits above may contain an overlay
        values = np.asarray((raw << spare) >> spare).astype(np.int64) * self.slope + self.intercept
        if self.padding:
            values[(raw >= min(self.padding)) & (raw <= max(self.padding))] = AIR
        return values

    def _decoded(self) -> np.ndarray:
        """Decompress with ITK, and undo ITK's rescaling and inversion of the values."""
        syntax = uid.UID(self.file.tags.file_meta.TransferSyntaxUID).name
        advice = f"its pixels ({syntax}) are damaged or cannot be decoded: convert the series to uncompressed DICOM"
        with itk_reader(self.file.path, "GDCMImageIO", advice) as reader:
            values = sitk.GetArrayFromImage(reader.Execute()).astype(float).reshape(self.geometry.shape[1:])
        stored = np.rint((values - self.intercept) / self.slope)
        if self.file.text("PhotometricInterpretation") == "MONOCHROME1":
            stored = (-1 if self.dtype.kind == "i" else 2**self.bits - 1) - stored
        return stored.astype(self.dtype.newbyteorder("="))
