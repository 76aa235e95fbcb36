"""One DICOM file: its tags, checked one by one, and its pixels in HU.

Only what places and rescales the voxels is read; no tag that names a patient is.
"""

from __future__ import annotations

import warnings
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

#: The last two have all slices in one file.
CTS = (uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage)
#: How files begin that hold DICOM without the header of the standard's part 10: with group 2 or 8.
BARE_DICOM = (b"\2\0", b"\10\0")
#: Tags by which the images of several volumes in one series differ, in the order in which they are tried.
VOLUME_TAGS = [
    *("TemporalPositionIdentifier", "AcquisitionNumber", "ImageType", "ConvolutionKernel"),
    *("AcquisitionTime", "ContentTime"),
]
_PADDING = ["PixelPaddingValue", "PixelPaddingRangeLimit"]
_NEEDED = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated"]
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "NumberOfFrames", *_NEEDED),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", *_PADDING, *VOLUME_TAGS),
]


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file of any kind.

    Attributes:
        path: the file.
        tags: those of ``_TAGS`` that it has, and its file meta information.
        offset: bytes before the element with the pixels.
    """

    path: Path
    tags: pydicom.Dataset
    offset: int

    def text(self, keyword: str) -> str:
        """Give the value of a tag as text; empty where it has none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, which name no file
            try:
                value = self.tags.get(keyword)
            except (ValueError, TypeError, OverflowError):  # not what the tag must be; shown as it is
                value = self.tags.get_item(keyword).value.decode("latin-1").strip(" \0")
        if isinstance(value, bytes):  # implicit VR does not say whether padding has a sign
            value = int.from_bytes(value, "little")
        if isinstance(value, (MultiValue, list)):
            return "\\".join(map(str, value))
        return "" if value is None else str(value)

    def numbers(self, keyword: str, count: int = 1, default: str = "") -> list[float]:
        """Give the numbers of a tag.

        Raises:
            LunaError: when there are not ``count`` numbers below ``LARGEST``.
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
        """What kind of DICOM object it is."""
        return uid.UID(self.text("SOPClassUID") or str(self.tags.file_meta.get("MediaStorageSOPClassUID", "")))

    @property
    def is_multi_frame(self) -> bool:
        """Whether it holds many slices."""
        return self.sop_class in CTS[1:] or self.text("NumberOfFrames") not in ("", "0", "1")


def read_dicom_file(path: Path) -> DicomFile | None:
    """Read the tags of a DICOM file.

    Args:
        path: any file.

    Returns:
        The file; None where it is not DICOM.

    Raises:
        LunaError: when it cannot be read, or is named ``.dcm`` and is not DICOM.
    """
    is_dicom = path.suffix.lower() == ".dcm" and not path.name.startswith(".")
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, which name no file
            head = stream.read(132)
            if head[128:] == b"DICM" or head[:2] in BARE_DICOM:
                stream.seek(0)
                tags = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
                file = DicomFile(path, tags, stream.tell())
                if file.sop_class:
                    return file
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception:  # pydicom raises many kinds
        is_dicom = is_dicom or head[128:] == b"DICM"
    if is_dicom:
        raise LunaError(f"{path}: a damaged DICOM slice; copy it again, or remove it if it is not of this scan")
    return None


@dataclass(frozen=True, eq=False)
class Slice:
    """A CT slice whose tags have been checked.

    Attributes:
        file: the DICOM file.
        geometry: of the slice as a volume of one, 1 mm thick.
        dtype: of the stored values, before rescaling.
        bits: of a stored value.
        slope: HU in a unit of the stored values.
        intercept: HU of the stored value 0.
        padding: the stored values that stand for "no value here", or the two ends of their range.
        offset: bytes before the pixels; None where they are compressed.
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
            file: a CT.

        Returns:
            The slice.

        Raises:
            LunaError: when a tag is missing, damaged or impossible, or the file is truncated.
        """
        if file.is_multi_frame:
            raise LunaError(f"{file.path}: a multi-frame CT (all slices in one file); convert it to NIfTI")
        if missing := [keyword for keyword in _NEEDED if not file.text(keyword)]:
            raise LunaError(f"{file.path}: a slice without {', '.join(missing)} cannot be placed in the patient")
        allocated = file.text("BitsAllocated")
        (samples,), (bits,) = file.numbers("SamplesPerPixel", 1, "1"), file.numbers("BitsStored", 1, allocated)
        if samples != 1 or allocated not in ("8", "16", "32") or not 1 <= bits <= int(allocated):
            found = f"{samples:g} of {allocated}, {bits:g} of them stored"
            raise LunaError(f"{file.path}: a CT has 1 sample of 8, 16 or 32 bits a pixel, found {found}")
        (rows,), (columns,) = file.numbers("Rows"), file.numbers("Columns")
        row_step, column_step = file.numbers("PixelSpacing", 2)
        x, y = np.reshape(file.numbers("ImageOrientationPatient", 6), (2, 3))
        axes = np.stack([x, y, np.cross(x, y)], axis=1)
        position = file.numbers("ImagePositionPatient", 3)
        geometry = Geometry.from_header(
            (columns, rows, 1), (column_step, row_step, 1), position, axes, source=file.path
        )
        syntax = uid.UID(str(file.tags.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian)))
        kind = "u" if file.text("PixelRepresentation") in ("", "0") else "i"
        dtype = np.dtype(f"{'>' if syntax == uid.ExplicitVRBigEndian else '<'}{kind}{int(allocated) // 8}")
        padding = [file.numbers(keyword) for keyword in _PADDING if file.text(keyword)]
        (slope,), (intercept,) = file.numbers("RescaleSlope", 1, "1"), file.numbers("RescaleIntercept", 1, "0")
        is_native = syntax in (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
        offset = file.offset + (8 if syntax == uid.ImplicitVRLittleEndian else 12)  # after the tag, type and length
        needed = int(rows * columns) * dtype.itemsize if is_native else 1
        if slope == 0 or file.path.stat().st_size - offset < needed:
            reason = "its RescaleSlope is 0" if slope == 0 else "it is truncated"
            raise LunaError(f"{file.path}: a damaged DICOM slice ({reason}); copy it again")
        # Writers disagree whether padding has a sign; the pixels say.
        ends = np.array(padding, dtype=np.int64).astype(dtype).ravel().tolist()
        return cls(file, geometry, dtype, int(bits), slope, intercept, ends, offset if is_native else None)

    def read(self) -> np.ndarray:
        """Read the pixels.

        Photometric interpretation says how stored values are shown, not what they mean, so ``MONOCHROME1`` does not
        change a HU.

        Returns:
            HU (y, x), float64. Padding is air.

        Raises:
            LunaError: when the pixels are damaged.
        """
        path, shape = self.file.path, self.geometry.shape[1:]
        raw = self._decoded() if self.offset is None else np.memmap(path, self.dtype, "r", self.offset, shape)
        spare = self.dtype.itemsize * 8 - self.bits  # bits above those stored may hold an overlay
        stored = np.asarray((raw << spare) >> spare).astype(np.int64)
        values = stored * self.slope + self.intercept
        if self.padding:
            values[(raw >= min(self.padding)) & (raw <= max(self.padding))] = AIR
        return values

    def _decoded(self) -> np.ndarray:
        """Decompress with ITK, which rescales and inverts the values, and undo that."""
        syntax = uid.UID(self.file.tags.file_meta.TransferSyntaxUID).name
        advice = f"its pixels ({syntax}) are damaged or cannot be decoded: convert the series to uncompressed DICOM"
        with itk_reader(self.file.path, "GDCMImageIO", advice) as reader:
            values = sitk.GetArrayFromImage(reader.Execute()).astype(float).reshape(self.geometry.shape[1:])
        stored = np.rint((values - self.intercept) / self.slope)
        if self.file.text("PhotometricInterpretation") == "MONOCHROME1":
            stored = (-1 if self.dtype.kind == "i" else 2**self.bits - 1) - stored
        return stored.astype(self.dtype.newbyteorder("="))
