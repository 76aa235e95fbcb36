"""Reading of CT series in folders of DICOM files, which may contain subfolders and other files."""

import filecmp
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.dicom_slice import CTS, VOLUME_TAGS, DicomFile, Slice, read_dicom_file
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.sources import ScanSource, walk

#: Largest deviation of the distance between two slices from the median distance, as a fraction of it.
SLICE_STEP_TOLERANCE = 0.1
#: Largest deviation because positions are rounded to 0.1 mm: in mm, and as a fraction of the median distance.
ROUNDING = (0.11, 0.2)
#: Largest distance of a slice from its place in a regular grid, in mm, and as a fraction of the distance of slices.
DRIFT = (1.0, 0.25)


@dataclass(frozen=True, kw_only=True)
class DicomHeader(ScanHeader):
    """The header of a DICOM CT series.

    Attributes:
        slices: the slices, in the order of the volume.
    """

    slices: tuple[Slice, ...]

    def read_voxels(self) -> np.ndarray:
        """Read the voxels in HU, see :meth:`ScanHeader.read_voxels`."""
        volume: np.ndarray = np.empty(self.geometry.shape, np.int16)
        for number, one in enumerate(self.slices):
            values = one.read()
            with np.errstate(invalid="ignore"):  # values may exceed the range of int16
                if volume.dtype == np.int16 and (values.astype(np.int16) != values).any():
                    volume = volume.astype(np.float32)
            volume[number] = values
        return volume


def read_dicom_header(source: ScanSource) -> DicomHeader:
    """Find a CT series in a folder and its subfolders, and read its tags.

    Other modalities, localizers, and series whose images all have the same position (such as bolus tracking) are
    ignored.

    Args:
        source: the folder to search; symbolic links are followed. A series UID is required if there are several CT
            series.

    Returns:
        The header, with the slices sorted along their normal.

    Raises:
        LunaError: when there is no such series, or there are several and ``seriesuid`` is None; when a slice is
            damaged, missing or duplicated, or the slices do not form a rectangular grid.
    """
    series: dict[str, list[DicomFile]] = {}
    others: dict[str, str] = {}
    folder, seriesuid = source.path, source.seriesuid
    paths = source.files or [path for _, files in walk(folder) for path in files]
    regular = [path for path in paths if path.is_file()]
    for file in filter(None, map(read_dicom_file, regular)):
        uid, is_ct = file.text("SeriesInstanceUID"), file.sop_class in CTS
        if is_ct and "LOCALIZER" not in file.text("ImageType").upper():
            series.setdefault(uid, []).append(file)
        else:
            others[uid] = "localizer" if is_ct else file.sop_class.name
    places = {uid: {file.text("ImagePositionPatient") for file in files} for uid, files in series.items()}
    # A series with a single position, such as a single slice, counts as a scan only if there is no other.
    volumes = {uid: files for uid, files in series.items() if len(places[uid]) > 1} or series
    if seriesuid is None and len(volumes) == 1:
        (seriesuid,) = volumes
    if seriesuid not in series:
        found = ", ".join(f"{uid} ({len(files)} slices)" for uid, files in sorted(volumes.items())) or "none"
        problem = f"series {seriesuid} {'is not a CT' if seriesuid in others else 'was not found'}"
        if seriesuid is None:
            choose = f"{len(volumes)} CT series; choose one by its series UID (--seriesuid)"
            problem = choose if volumes else "no DICOM slices of a CT in this folder"
        other = ", ".join(sorted(set(others.values()))) or "none"
        raise LunaError(f"{folder}: {problem}; CT series: {found}; other images: {other}")
    warnings: list[str] = []
    if broken := [path for path in set(paths).difference(regular) if path.is_symlink()]:
        warnings.append(f"{len(broken)} files are links to missing files and were ignored")
    slices = [Slice.check(file) for file in _without_copies(series[seriesuid], warnings)]
    facts = _stack(folder, _without_outliers(folder, slices, warnings), warnings)
    return DicomHeader(path=folder, seriesuid=seriesuid, dtype=np.dtype(np.int16), **facts, warnings=tuple(warnings))


def _without_copies(files: list[DicomFile], warnings: list[str]) -> list[DicomFile]:
    """Remove files that are byte-for-byte copies of another file."""
    first = {file.text("SOPInstanceUID"): file for file in reversed(files)}
    pairs = ((first[file.text("SOPInstanceUID")], file) for file in files)
    copies = [file for one, file in pairs if one is not file and filecmp.cmp(one.path, file.path, shallow=False)]
    if copies:
        warnings.append(f"{len(copies)} files are copies of other slices and were ignored")
    return [file for file in files if file not in copies]


def _without_outliers(folder: Path, slices: list[Slice], warnings: list[str]) -> list[Slice]:
    """Remove images whose size, spacing or orientation differs from most of the series, such as a scout image."""
    kinds: dict[tuple[float, ...], list[Slice]] = {}
    for one in slices:
        numbers = (*one.geometry.size, *one.geometry.spacing, *np.ravel(one.geometry.direction))
        kind = next((kind for kind in kinds if np.allclose(kind, numbers, rtol=0, atol=1e-3)), numbers)
        kinds.setdefault(kind, []).append(one)
    most = max(kinds.values(), key=len)
    if outliers := [one.file.path.name for one in slices if one not in most]:
        found = f"{len(outliers)} of {len(slices)} images have another size, spacing or orientation than the others"
        if 2 * len(most) <= len(slices):
            raise LunaError(f"{folder}: {found}, the first is {outliers[0]}; keep the images of one volume")
        warnings.append(f"{found} and were ignored")  # file names may contain the name of the patient
    return most


def _stack(folder: Path, slices: list[Slice], warnings: list[str]) -> dict[str, Any]:
    """Sort slices along their normal, and check that they form a rectangular grid."""
    # Not highdicom's get_series_volume_positions, because highdicom is an optional dependency.
    first = slices[0].geometry
    normal = np.asarray(first.direction)[:, 2]
    slices = sorted(slices, key=lambda one: float(np.dot(one.geometry.origin, normal)))
    names, origins = [one.file.path.name for one in slices], np.asarray([one.geometry.origin for one in slices])
    places = origins @ normal
    positions, counts = np.unique(np.round(places, 2), return_counts=True)
    if counts.min() > 1 and counts.min() == counts.max():
        values = {keyword: sorted({one.file.text(keyword) for one in slices}) for keyword in VOLUME_TAGS}
        differ = (f"{keyword} ({', '.join(found)})" for keyword, found in values.items() if len(found) == counts[0])
        what = f"{counts[0]} images at each of {len(positions)} positions, which differ in {next(differ, 'no tag')}"
        raise LunaError(f"{folder}: {what}; keep the images of one volume")
    for keyword in VOLUME_TAGS[:2]:
        parts = [one.file.text(keyword) for one in slices]
        changes = sum(one != other for one, other in pairwise(parts))
        if changes > max(len(set(parts)) - 1, len(slices) // 2):
            warnings.append(f"slices of several acquisitions alternate ({keyword}); check that they are one volume")
    step = slices[0].file.numbers("SliceThickness", 1, "1")[0] or 1.0
    if len(slices) > 1:
        steps, grid = np.diff(places), np.linspace(places[0], places[-1], len(places))
        usual, step = float(np.median(steps)), float(grid[1] - grid[0])
        where, drift = int(np.abs(steps - usual).argmax()), float(np.abs(places - grid).max())
        tolerance = max(SLICE_STEP_TOLERANCE * usual, min(ROUNDING[0], ROUNDING[1] * usual))
        if not abs(steps[where] - usual) < tolerance:
            found = f"{names[where]} and {names[where + 1]} are {steps[where]:.3f} mm apart, most others {usual:.3f} mm"
            raise LunaError(f"{folder}: slices are missing, duplicated or unevenly spaced: {found}")
        if drift > max(DRIFT[0], DRIFT[1] * step):
            found = f"slices are unevenly spaced, and up to {drift:.1f} mm from where even steps would place them"
            raise LunaError(f"{folder}: {found}; resample the scan onto a rectangular grid")
        sideways = np.abs(origins - origins[0] - np.outer(places - places[0], normal)).max()
        if sideways > min(first.spacing[:2]) / 2:
            found = f"slices are displaced sideways by up to {sideways:.2f} mm (a tilted gantry)"
            raise LunaError(f"{folder}: {found}; resample the scan onto a rectangular grid")
    size, spacing = (*first.size[:2], len(slices)), (*first.spacing[:2], step)
    geometry = Geometry.from_header(size, spacing, origins[0], first.direction, source=folder)
    files = tuple(one.file.path for one in slices)
    instances = tuple((one.file.text("InstanceNumber"), one.file.text("SOPInstanceUID")) for one in slices)
    return {"geometry": geometry, "slices": tuple(slices), "files": files, "instances": instances}
