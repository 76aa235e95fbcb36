"""CT series in folders of DICOM files, which may hold subfolders and other files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.uid import CTImageStorage, MediaStorageDirectoryStorage

from luna_monai.errors import LunaError
from luna_monai.scans.dicom_slice import MULTI_FRAME_CT, TISSUE_HU, VOLUME_TAGS, DicomFile, Slice, read_dicom_file
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import ScanHeader

#: How much the distance of two slices may differ from the usual one, as a part of it.
SLICE_STEP_TOLERANCE = 0.1
#: Half of a scan cannot be denser than this, in HU: most of it is air and soft tissue.
IMPOSSIBLE_MEDIAN = 1500


@dataclass(frozen=True, kw_only=True)
class DicomHeader(ScanHeader):
    """The tags of a CT series.

    Attributes:
        slices: in the order of the volume.
    """

    slices: tuple[Slice, ...]

    def read_voxels(self) -> np.ndarray:
        """Read the voxels in HU, see :meth:`ScanHeader.read_voxels`.

        Photometric interpretation says how stored values are shown, not what they mean, so ``MONOCHROME1`` does not
        change a HU. Where the HU would then be those of no body, the writer has inverted the values.
        """
        middle = self.slices[len(self.slices) // 2]
        invert = middle.is_inverted and float(np.median(middle.read())) > IMPOSSIBLE_MEDIAN
        kinds: list[type] = [np.int16, np.int32, np.float32]
        volume: np.ndarray = np.empty(self.geometry.shape, kinds[0])
        for number, one in enumerate(self.slices):
            values = one.read(invert=invert)
            with np.errstate(invalid="ignore"):  # of fractions beyond the range
                while len(kinds) > 1 and (values.astype(kinds[0]) != values).any():
                    del kinds[0]
            volume = volume.astype(kinds[0], copy=False)
            volume[number] = values
        return volume


def read_dicom_header(folder: Path, seriesuid: str | None = None) -> DicomHeader:
    """Find a CT series in a folder and the folders in it, and read its tags.

    Other modalities, localizers, and series whose images are all at one position (as for the timing of contrast agent)
    are passed over.

    Args:
        folder: where to look; links are followed.
        seriesuid: which series; needed when there are several CTs.

    Returns:
        The header, its slices sorted along their normal.

    Raises:
        LunaError: when there is no such series, or several to choose from; when a slice is damaged, missing or double,
            or the slices are no rectangular grid.
    """
    series: dict[str, list[DicomFile]] = {}
    others: dict[str, str] = {}
    for path in _files(folder):
        file = read_dicom_file(path)
        if file is None or file.sop_class == MediaStorageDirectoryStorage:
            continue
        uid = file.text("SeriesInstanceUID")
        is_ct = file.sop_class in (CTImageStorage, *MULTI_FRAME_CT)
        if is_ct and "LOCALIZER" not in file.text("ImageType").upper().split("\\"):
            series.setdefault(uid, []).append(file)
        else:
            others[uid] = "localizer" if is_ct else file.sop_class.name
    volumes = {
        uid: files
        for uid, files in series.items()
        if uid == seriesuid or len({file.text("ImagePositionPatient") for file in files}) > 1 or files[0].is_multi_frame
    }
    # A single slice is a scan where there is no other.
    uid, files = _choose(folder, volumes or series, others, seriesuid)
    warnings: list[str] = []
    return _stack(folder, uid, _without_strays(folder, _without_copies(files, warnings), warnings), warnings)


def holds_dicom(folder: Path) -> bool:
    """Tell whether a folder, or a folder in it, holds a file that says it is DICOM (part 10)."""
    for file in _files(folder):
        with file.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return True
    return False


def series_of_file(path: Path) -> str | None:
    """Tell which series a file belongs to.

    Args:
        path: any file.

    Returns:
        The Series Instance UID; None where the file is not a DICOM image.

    Raises:
        LunaError: when it is a damaged slice.
    """
    file = read_dicom_file(path)
    return None if file is None else file.text("SeriesInstanceUID") or None


def _files(folder: Path) -> Iterator[Path]:
    """List all files below a folder, sorted, each folder once however it is linked."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file())


def _choose(
    folder: Path, series: dict[str, list[DicomFile]], others: dict[str, str], seriesuid: str | None
) -> tuple[str, list[DicomFile]]:
    listed = ", ".join(f"{uid} ({len(files)} slices)" for uid, files in sorted(series.items())) or "none"
    if seriesuid in series:
        return seriesuid, series[seriesuid]
    if seriesuid is not None:
        kind = f"is not a CT ({others[seriesuid]})" if seriesuid in others else "is not there"
        raise LunaError(f"{folder}: series {seriesuid} {kind}; the CTs are: {listed}")
    if not series:
        kinds = ", ".join(sorted(set(others.values()))) or "none"
        raise LunaError(f"{folder}: no DICOM slices of a CT in this folder; other images: {kinds}")
    if len(series) > 1:
        raise LunaError(f"{folder}: {len(series)} CT series, choose one by its series UID (--seriesuid): {listed}")
    return next(iter(series.items()))


def _without_copies(files: Sequence[DicomFile], warnings: list[str]) -> list[DicomFile]:
    """Leave out files that are byte for byte the same as another one."""
    kept: dict[str, DicomFile] = {}
    copies: list[str] = []
    result = []
    for file in files:
        first = kept.setdefault(file.text("SOPInstanceUID") or str(file.path), file)
        if first is not file and first.path.read_bytes() == file.path.read_bytes():
            copies.append(file.path.name)
        else:
            result.append(file)
    if copies:
        warnings.append(f"{len(copies)} files are copies of other slices and were left out, the first is {copies[0]}")
    return result


def _without_strays(folder: Path, files: Sequence[DicomFile], warnings: list[str]) -> list[Slice]:
    """Leave out images of another size or orientation than most of the series has, such as a scout."""
    kinds: dict[tuple[object, ...], list[Slice]] = {}
    for one in map(Slice.check, files):
        numbers = np.round([*np.ravel(one.geometry.direction), *one.geometry.spacing[:2]], 3)
        kinds.setdefault((*one.geometry.size, *numbers.tolist()), []).append(one)
    most = max(kinds.values(), key=len)
    strays = [one for kind in kinds.values() if kind is not most for one in kind]
    if strays:
        example = f"{strays[0].file.path.name} ({' × '.join(map(str, strays[0].geometry.size[:2]))} pixels)"
        if 2 * len(most) <= len(files):
            raise LunaError(f"{folder}: size, spacing or orientation differ in the series, as in {example}")
        found = f"{len(strays)} of {len(files)} images have another size, spacing or orientation"
        warnings.append(f"{found} than the others and were left out, the first is {example}")
    return most


def _stack(folder: Path, uid: str, slices: list[Slice], warnings: list[str]) -> DicomHeader:
    first = slices[0].geometry
    normal = np.asarray(first.direction)[:, 2]
    slices = sorted(slices, key=lambda one: float(np.dot(one.geometry.origin, normal)))
    origins = np.asarray([one.geometry.origin for one in slices])
    places = origins @ normal
    spacing = first.spacing
    if len(slices) > 1:
        _check_steps(folder, slices, places)
        sideways = np.abs(origins - origins[0] - np.outer(places - places[0], normal)).max()
        if sideways > min(first.spacing[:2]) / 2:
            found = f"slices are displaced sideways by up to {sideways:.2f} mm (a tilted gantry)"
            raise LunaError(f"{folder}: {found}; resample the scan onto a rectangular grid")
        spacing = (*first.spacing[:2], float(places[-1] - places[0]) / (len(slices) - 1))
    geometry = Geometry.from_header((*first.size[:2], len(slices)), spacing, origins[0], first.direction, source=folder)
    paddings = [one.padding[0] * one.slope + one.intercept for one in slices if one.padding]
    if odd := [value for value in paddings if TISSUE_HU[0] < value < TISSUE_HU[1]]:
        warnings.append(f"voxels of {odd[0]:g} HU count as air, because PixelPaddingValue says so")
    return DicomHeader(
        format="DICOM",
        path=folder,
        seriesuid=uid,
        geometry=geometry,
        dtype=np.dtype(np.int16),
        files=tuple(one.file.path for one in slices),
        warnings=tuple(warnings),
        slices=tuple(slices),
    )


def _check_steps(folder: Path, slices: Sequence[Slice], places: np.ndarray) -> None:
    """Check that slices are evenly spaced; of several volumes in one series, say what tells them apart."""
    rounded = Counter(np.round(places, 2).tolist())
    volumes = min(rounded.values())
    if volumes > 1 and max(rounded.values()) == volumes:
        what = "no tag tells them apart"
        for keyword in VOLUME_TAGS:
            values = sorted({one.file.text(keyword) for one in slices})
            if len(values) == volumes:
                what = f"{keyword} tells them apart ({', '.join(values)})"
                break
        raise LunaError(f"{folder}: {volumes} images at each of {len(rounded)} positions, {what}; keep one volume")
    steps = np.diff(places)
    step = float(np.median(steps))
    uneven = ~(np.abs(steps - step) < SLICE_STEP_TOLERANCE * step)
    if uneven.any():
        where = int(uneven.argmax())
        below, above = (slices[index].file.path.name for index in (where, where + 1))
        found = f"{below} and {above} are {steps[where]:.3f} mm apart, most others {step:.3f} mm"
        raise LunaError(f"{folder}: slices are missing or double: {found}")
