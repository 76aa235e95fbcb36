"""One DICOM slice: its tags, checked one by one, and its pixels in HU.

Only what places and rescales the voxels is read; no tag that names a patient is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.multival import MultiValue
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    LegacyConvertedEnhancedCTImageStorage,
)

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.itk import itk_errors
from luna_monai.scans.voxels import AIR, LARGEST, map_voxels

#: CTs with all slices in one file.
MULTI_FRAME_CT = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
#: How files begin that hold DICOM without the header of the standard's part 10: with group 2 or 8.
BARE_DICOM = (b"\2\0", b"\10\0")
#: Tags by which the images of several volumes in one series differ, in the order in which they are tried.
VOLUME_TAGS = (
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "ImageType",
    "ConvolutionKernel",
    "AcquisitionTime",
    "ContentTime",
)
#: HU of tissue: padding with such a value is more likely a wrong tag.
TISSUE_HU = (-900, 3000)
#: Tags of the rescaling, and what they are where they are missing.
_RESCALE = {"Slope": "1", "Intercept": "0"}
_NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns", "BitsAllocated")
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "NumberOfFrames", "SliceThickness", *_NEEDED),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", *VOLUME_TAGS),
]


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file of any kind.

    Attributes:
        path: the file.
        tags: those of ``_TAGS`` that it has, and its file meta information.
        pixel_offset: bytes before the pixel data.
        pixel_bytes: bytes from there to the end of the file.
    """

    path: Path
    tags: pydicom.Dataset
    pixel_offset: int
    pixel_bytes: int

    def text(self, keyword: str) -> str:
        """Give the value of a tag as text; empty where it has none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, which name no file
            try:
                value = self.tags.get(keyword)
            except (ValueError, TypeError, OverflowError):  # not what the tag must be; shown as it is
                value = self.tags.get_item(keyword).value
        if isinstance(value, bytes):  # implicit VR does not say whether padding has a sign
            is_number = keyword.startswith("PixelPadding")
            return str(int.from_bytes(value, "little")) if is_number else value.decode("latin-1").strip(" \0")
        parts = value if isinstance(value, (MultiValue, list)) else [value]
        return "\\".join("" if part is None else str(part) for part in parts).strip(" \0")

    def numbers(self, keyword: str, count: int, default: str = "") -> tuple[float, ...]:
        """Give the numbers of a tag.

        Raises:
            LunaError: when there are not ``count`` numbers below ``LARGEST``.
        """
        text = self.text(keyword) or default
        try:
            values = tuple(float(part) for part in text.split("\\"))
        except ValueError:
            values = ()
        if len(values) != count or not (np.abs(values) < LARGEST).all():
            raise LunaError(f"{self.path}: {keyword} must be {count} decimal number{'s' * (count > 1)}, found {text!r}")
        return values

    def whole(self, keyword: str, default: str = "") -> int:
        """Give the whole number of a tag, see :meth:`numbers`."""
        return int(self.numbers(keyword, 1, default)[0])

    @property
    def sop_class(self) -> pydicom.uid.UID:
        """What kind of DICOM object it is."""
        return pydicom.uid.UID(self.text("SOPClassUID") or str(self.tags.file_meta.get("MediaStorageSOPClassUID", "")))

    @property
    def transfer_syntax(self) -> pydicom.uid.UID:
        """How it is encoded."""
        return pydicom.uid.UID(str(self.tags.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)))

    @property
    def is_multi_frame(self) -> bool:
        """Whether it holds many slices."""
        return self.sop_class in MULTI_FRAME_CT or self.text("NumberOfFrames") not in ("", "0", "1")


def read_dicom_file(path: Path) -> DicomFile | None:
    """Read the tags of a DICOM file.

    Args:
        path: any file.

    Returns:
        The file; None where it is not DICOM.

    Raises:
        LunaError: when it cannot be read, is a damaged CT slice, or is named ``.dcm`` and is not DICOM.
    """
    meta, tags, offset, size = None, None, 0, 0
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, which name no file
            head = stream.read(132)
            if head[128:] == b"DICM":
                stream.seek(0)
                meta = pydicom.filereader.read_partial(stream, stop_when=lambda tag, *_: tag.group != 2).file_meta
            if meta is not None or head[:2] in BARE_DICOM:
                stream.seek(0)
                tags = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS, force=True)
                offset, size = stream.tell(), path.stat().st_size
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception:  # pydicom raises many kinds
        tags = None
    if tags is not None:
        file = DicomFile(path, tags, offset, size - offset)
        if file.sop_class:
            return file
    is_ct = meta is not None and meta.get("MediaStorageSOPClassUID") in (CTImageStorage, *MULTI_FRAME_CT)
    if is_ct or (path.suffix.lower() == ".dcm" and not path.name.startswith(".")):
        raise LunaError(f"{path}: a damaged DICOM slice; copy it again, or remove it if it is not of this scan")
    return None


@dataclass(frozen=True)
class Slice:
    """A CT slice whose tags have been checked.

    Attributes:
        file: the DICOM file.
        geometry: of the slice as a volume of one.
        dtype: of the stored values, before rescaling.
        bits: of a stored value.
        slope: HU in a unit of the stored values.
        intercept: HU of the stored value 0.
        padding: first and last stored value that stand for "no value here"; empty when there are none.
        offset: bytes before the pixels; None where they are compressed.
    """

    file: DicomFile
    geometry: Geometry
    dtype: np.dtype
    bits: int
    slope: float
    intercept: float
    padding: tuple[int, ...]
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
        samples, bits = file.whole("SamplesPerPixel", "1"), file.whole("BitsAllocated")
        stored_bits = file.whole("BitsStored", str(bits))
        if samples != 1 or bits not in (8, 16, 32) or not 1 <= stored_bits <= bits:
            found = f"{samples} of {bits}, {stored_bits} of them stored"
            raise LunaError(f"{file.path}: a CT has 1 sample of 8, 16 or 32 bits a pixel, found {found}")
        rows, columns = file.whole("Rows"), file.whole("Columns")
        row_step, column_step = file.numbers("PixelSpacing", 2)
        x, y = np.reshape(file.numbers("ImageOrientationPatient", 6), (2, 3))
        thickness = file.numbers("SliceThickness", 1, "1")[0]
        geometry = Geometry.from_header(
            (columns, rows, 1),
            (column_step, row_step, thickness if thickness > 0 else 1.0),
            file.numbers("ImagePositionPatient", 3),
            np.stack([x, y, np.cross(x, y)], axis=1),
            source=file.path,
        )
        syntax = file.transfer_syntax
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dtype = np.dtype(f"{order}{'iu'[file.whole('PixelRepresentation', '0') != 1]}{bits // 8}")
        padding: list[int] = []
        if file.text("PixelPaddingValue"):
            first = file.whole("PixelPaddingValue")
            ends = np.array([first, file.whole("PixelPaddingRangeLimit", str(first))], dtype=np.int64)
            padding = sorted(ends.astype(dtype).tolist())  # writers disagree whether it has a sign; the pixels say
        slope, intercept = (file.numbers(f"Rescale{name}", 1, default)[0] for name, default in _RESCALE.items())
        is_native = syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
        element = 8 if syntax == ImplicitVRLittleEndian else 12  # bytes of the pixel data's tag, type and length
        needed = rows * columns * dtype.itemsize if is_native else 1
        if slope == 0 or file.pixel_bytes - element < needed:
            reason = "its RescaleSlope is 0" if slope == 0 else "it is truncated"
            raise LunaError(f"{file.path}: a damaged DICOM slice ({reason}); copy it again")
        offset = file.pixel_offset + element if is_native else None
        return cls(file, geometry, dtype, stored_bits, slope, intercept, tuple(padding), offset)

    @property
    def is_inverted(self) -> bool:
        """Whether low values are shown white."""
        return self.file.text("PhotometricInterpretation") == "MONOCHROME1"

    def _inverted(self, stored: np.ndarray) -> np.ndarray:
        return (-1 if self.dtype.kind == "i" else 2**self.bits - 1) - stored

    def read(self, *, invert: bool = False) -> np.ndarray:
        """Read the pixels.

        Args:
            invert: whether the stored values count from the other end.

        Returns:
            HU (y, x): int64, or float64 where the rescaling makes them fractions. Padding is air.

        Raises:
            LunaError: when the pixels are damaged.
        """
        shape = self.geometry.shape[1:]
        raw = self._decoded() if self.offset is None else map_voxels(self.file.path, self.offset, self.dtype, shape)
        spare = self.dtype.itemsize * 8 - self.bits  # bits above those stored may hold an overlay
        stored = ((raw << spare) >> spare).astype(np.int64)
        if invert:
            stored = self._inverted(stored)
        whole = self.slope.is_integer() and self.intercept.is_integer()
        slope, intercept = (int(self.slope), int(self.intercept)) if whole else (self.slope, self.intercept)
        values = stored * slope + intercept
        if self.padding:
            values[(raw >= self.padding[0]) & (raw <= self.padding[1])] = AIR
        return values

    def _decoded(self) -> np.ndarray:
        """Decompress with ITK, which rescales and inverts the values, and undo that."""
        path, shape = self.file.path, self.geometry.shape[1:]
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        syntax = self.file.transfer_syntax.name
        advice = f"its pixels ({syntax}) are damaged or cannot be decoded: convert the series to uncompressed DICOM"
        with itk_errors(path, advice):
            values = np.squeeze(sitk.GetArrayFromImage(reader.Execute())).astype(float)
        if values.shape != shape:
            raise LunaError(f"{path}: {values.shape} pixels (y, x) instead of {shape}; copy it again")
        stored = np.rint((values - self.intercept) / self.slope)
        return (self._inverted(stored) if self.is_inverted else stored).astype(self.dtype.newbyteorder("="))
