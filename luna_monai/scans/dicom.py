"""CT series in folders of DICOM files, however deep and whatever else lies there.

Only what places the voxels is taken from the files; nothing that names a patient is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

#: How much the distance of two slices may differ from the usual one, as a part of it.
SLICE_STEP_TOLERANCE = 0.1
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
#: CTs with all slices in one file, whose positions ITK does not check.
MULTI_FRAME_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
#: How files begin that hold DICOM without the header of the standard's part 10: with group 2 or 8.
BARE_DICOM = (b"\2\0", b"\10\0")
#: Half of a scan can't be denser than this, in HU: most of it is air and soft tissue.
IMPOSSIBLE_MEDIAN = 1500

_SOP_CLASS, _IMAGE_TYPE, _SERIES = "0008|0016", "0008|0008", "0020|000e"
_PHOTOMETRIC, _BITS_STORED, _SIGNED = "0028|0004", "0028|0101", "0028|0103"
_INTERCEPT, _SLOPE = "0028|1052", "0028|1053"
_NEEDED = {
    "0020|0032": "Image Position (Patient)",
    "0020|0037": "Image Orientation (Patient)",
    "0028|0030": "Pixel Spacing",
}


@dataclass(frozen=True)
class DicomSeries:
    """A CT series.

    Attributes:
        seriesuid: its Series Instance UID.
        files: its slices in the order of the volume.
        geometry: size, place and orientation of the volume.
    """

    seriesuid: str
    files: tuple[Path, ...]
    geometry: Geometry


@dataclass(frozen=True)
class _Slice:
    file: Path
    header: sitk.ImageFileReader

    def tag(self, key: str, default: str = "") -> str:
        return str(self.header.GetMetaData(key)).strip(" \0") if self.header.HasMetaDataKey(key) else default

    @property
    def origin(self) -> tuple[float, float, float]:
        x, y, z = self.header.GetOrigin()
        return x, y, z


def find_dicom_series(folder: str | Path, seriesuid: str | None = None) -> DicomSeries:
    """Find a CT series in a folder and the folders in it.

    Other modalities, localizers, and series whose images are all at one place (as for the timing of contrast agent)
    are passed over.

    Args:
        folder: where to look.
        seriesuid: which series; needed when there are several CTs.

    Returns:
        The series, its slices sorted along their normal.

    Raises:
        LunaError: when there is no such series, or several to choose from; when a slice is damaged, missing or double,
            or the slices are no rectangular grid.
    """
    folder = Path(folder)
    series: dict[str, list[_Slice]] = {}
    others: set[str] = set()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = _read_slice(file)
        if found is None:
            continue
        uid = found.tag(_SERIES)
        is_ct = found.tag(_SOP_CLASS) in (CT_IMAGE_STORAGE, *MULTI_FRAME_CT)
        if is_ct and "LOCALIZER" not in found.tag(_IMAGE_TYPE).upper().split("\\"):
            series.setdefault(uid, []).append(found)
        else:
            others.add(uid)
    volumes = {
        uid: slices
        for uid, slices in series.items()
        if uid == seriesuid or len({one.origin for one in slices}) > 1 or slices[0].tag(_SOP_CLASS) in MULTI_FRAME_CT
    }
    if not volumes:  # a single slice is a scan where there is no other
        volumes = series
    return _sort_slices(folder, *_choose(folder, volumes, others - set(series), seriesuid))


def holds_dicom(folder: str | Path) -> bool:
    """Tell whether a folder, or a folder in it, holds a file that says it is DICOM (part 10)."""
    for file in Path(folder).rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(132)[128:] == b"DICM":
                    return True
    return False


def series_of_file(path: str | Path) -> str | None:
    """Tell which series a DICOM file belongs to.

    Args:
        path: the file.

    Returns:
        The Series Instance UID; None where the file is no DICOM image.

    Raises:
        LunaError: when it is a damaged slice.
    """
    found = _read_slice(Path(path))
    return None if found is None else found.tag(_SERIES)


def read_dicom_voxels(series: DicomSeries) -> np.ndarray:
    """Read the voxels of a series in HU.

    Photometric interpretation says how stored values are shown, not what they mean, so ``MONOCHROME1`` does not change
    a HU; ITK inverts such slices, which is taken back. Where the HU would then be those of no body, the values were
    inverted by who wrote them, and ITK's are right.

    Args:
        series: from :func:`find_dicom_series`.

    Returns:
        Array (z, y, x): int16 where every value fits, else int32 or float32.

    Raises:
        LunaError: when a slice is damaged, or was changed since the series was found.
    """
    volume = np.empty(series.geometry.shape, dtype=np.int16)
    inverted: dict[int, float] = {}
    for number, file in enumerate(series.files):
        header = _image_reader(file)
        with itk_errors(file):
            values = np.squeeze(sitk.GetArrayFromImage(header.Execute()))
        if values.shape != volume.shape[1:]:
            raise LunaError(f"{file}: {values.shape} voxels (y, x) instead of {volume.shape[1:]}; start again")
        if not np.can_cast(values.dtype, volume.dtype):
            volume, values = _widened(volume, values)
        volume[number] = values
        one = _Slice(file, header)
        if one.tag(_PHOTOMETRIC) == "MONOCHROME1":
            largest = -1 if one.tag(_SIGNED, "0") == "1" else 2 ** int(one.tag(_BITS_STORED, "16")) - 1
            slope, intercept = float(one.tag(_SLOPE, "1")), float(one.tag(_INTERCEPT, "0"))
            inverted[number] = largest * slope + 2 * intercept
    if inverted:
        rows = list(inverted)
        middle = rows[len(rows) // 2]
        if np.median(inverted[middle] - volume[middle].astype(float)) <= IMPOSSIBLE_MEDIAN:
            for number, total in inverted.items():
                volume[number] = total - volume[number].astype(float)
    return volume


@contextmanager
def itk_errors(path: Path) -> Iterator[None]:
    """Turn ITK's errors into one line, and keep its warnings, which name no file, off the user's terminal."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).rsplit("ERROR:", 1)[-1].split())
        raise LunaError(f"{path}: cannot be read; it is damaged or no such file as its name says ({reason})") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _image_reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _read_slice(file: Path) -> _Slice | None:
    """Read the header of a DICOM image; None for notes, thumbnails and DICOM objects that are no images."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise LunaError(f"{file}: cannot be read ({error.strerror})") from error
    is_part_10 = head[128:132] == b"DICM"
    header = _image_reader(file)
    if is_part_10 or head[:2] in BARE_DICOM:
        try:
            with itk_errors(file):
                header.ReadImageInformation()
        except LunaError:
            pass
        else:
            return _Slice(file, header)
    # The SOP class is padded to an even length.
    is_ct_slice = is_part_10 and CT_IMAGE_STORAGE.encode() + b"\0" in head
    is_called_dicom = not is_part_10 and file.suffix.lower() == ".dcm" and not file.name.startswith(".")
    if is_ct_slice or is_called_dicom:
        raise LunaError(f"{file}: a damaged DICOM slice; copy it again, or remove it if it is not of this scan")
    return None


def _choose(
    folder: Path, series: dict[str, list[_Slice]], others: set[str], seriesuid: str | None
) -> tuple[str, list[_Slice]]:
    listed = ", ".join(f"{uid} ({len(slices)} slices)" for uid, slices in sorted(series.items()))
    if seriesuid is not None:
        if seriesuid in series:
            return seriesuid, series[seriesuid]
        if seriesuid in others:
            raise LunaError(f"{folder}: the DICOM series {seriesuid} is no CT; the CTs are: {listed or 'none'}")
        raise LunaError(f"{folder}: no DICOM series {seriesuid}; the CTs are: {listed or 'none'}")
    if not series:
        besides = f", only {len(others)} series of another kind" if others else ""
        raise LunaError(f"{folder}: no DICOM slices of a CT in this folder{besides}")
    if len(series) > 1:
        raise LunaError(f"{folder}: {len(series)} CT series, choose one by its series UID (--seriesuid): {listed}")
    return next(iter(series.items()))


def _sort_slices(folder: Path, uid: str, slices: Sequence[_Slice]) -> DicomSeries:
    for one in slices:
        if one.tag(_SOP_CLASS) in MULTI_FRAME_CT:
            raise LunaError(
                f"{one.file}: a multi-frame CT, which is not read; convert it to NIfTI, or to one file a slice"
            )
        missing = [name for key, name in _NEEDED.items() if not one.tag(key)]
        if missing:
            raise LunaError(f"{one.file}: a slice without {', '.join(missing)}; it can't be placed in the patient")
    geometries = [
        Geometry.from_header(
            one.header.GetSize(), one.header.GetSpacing(), one.origin, one.header.GetDirection(), source=one.file
        )
        for one in slices
    ]
    first = geometries[0]
    if len(slices) == 1:
        return DicomSeries(uid, (slices[0].file,), first)
    for one, geometry in zip(slices, geometries, strict=True):
        if (
            geometry.size != first.size
            or not np.allclose(geometry.direction, first.direction, atol=1e-4)
            or not np.allclose(geometry.spacing[:2], first.spacing[:2], rtol=1e-4)
        ):
            raise LunaError(
                f"{one.file}: size, spacing or orientation differ from those of {slices[0].file.name}; remove what is "
                f"not of this scan from {folder}"
            )
    normal = np.asarray(first.direction)[:, 2]
    origins = np.asarray([one.origin for one in slices])
    order = np.argsort(origins @ normal, kind="stable")
    files = tuple(slices[index].file for index in order)
    places = origins[order] @ normal
    offsets = origins[order] - origins[order[0]]
    positions = offsets @ normal
    steps = np.diff(positions)
    step = float(np.median(steps))
    uneven = ~(np.abs(steps - step) < SLICE_STEP_TOLERANCE * step)
    if uneven.any():
        where = int(uneven.argmax())
        more = f" (and so at {uneven.sum() - 1} more places)" if uneven.sum() > 1 else ""
        raise LunaError(
            f"{folder}: slices are missing or double: {files[where].name} at {places[where]:.2f} mm and "
            f"{files[where + 1].name} at {places[where + 1]:.2f} mm are {steps[where]:.3f} mm apart{more}, most others "
            f"{step:.3f} mm"
        )
    sideways = np.abs(offsets - positions[:, None] * normal).max()
    if sideways > min(first.spacing[:2]) / 2:
        raise LunaError(
            f"{folder}: the slices from {places[0]:.2f} to {places[-1]:.2f} mm are displaced sideways by up to "
            f"{sideways:.2f} mm (a tilted gantry); resample the scan onto a rectangular grid"
        )
    geometry = Geometry(
        size=(first.size[0], first.size[1], len(files)),
        spacing=(first.spacing[0], first.spacing[1], float(positions[-1] / (len(files) - 1))),
        origin=slices[order[0]].origin,
        direction=first.direction,
    )
    return DicomSeries(uid, files, geometry)


def _widened(volume: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the volume's type wide enough for a slice, or the slice's narrower where its values allow it."""
    if np.issubdtype(values.dtype, np.floating) and (values != np.round(values)).any():
        return volume.astype(np.float32, copy=False), values
    limits = np.iinfo(np.int16)
    if limits.min <= values.min() and values.max() <= limits.max:
        return volume, values
    return (volume if volume.dtype == np.float32 else volume.astype(np.int32, copy=False)), values
