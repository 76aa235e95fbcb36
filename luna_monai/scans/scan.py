"""Which scans a path stands for, and one of them as the network wants it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel.orientations
import numpy as np

from luna_monai.data.candidates import find_scans
from luna_monai.data.tables import read_table
from luna_monai.errors import LunaError
from luna_monai.scans.dicom import find_dicom_series, holds_dicom, read_dicom_voxels, series_of_file
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.readers import SUFFIXES, map_or_read

#: In HU: what counts as lying outside of a scan.
AIR = -1000


@dataclass(frozen=True)
class ScanSource:
    """Where a scan is.

    Attributes:
        path: a file, or a folder with DICOM files in it.
        seriesuid: which series of a DICOM folder; of another scan, the name it goes by instead of its file's.
    """

    path: Path
    seriesuid: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedScan:
    """A scan that has been read.

    Attributes:
        seriesuid: the DICOM series UID, or the name of the file where it has none.
        path: the file or folder that it was read from.
        voxels: array (z, y, x) in the type and the order of the file.
        geometry: of ``voxels``.
        dicom_files: the slices in the order of the volume, where the scan is a DICOM series.
    """

    seriesuid: str
    path: Path
    voxels: np.ndarray
    geometry: Geometry
    dicom_files: tuple[Path, ...] = ()

    def without_voxels(self) -> LoadedScan:
        """Give the same with no voxels, to be kept when they are no longer needed."""
        return dataclasses.replace(self, voxels=self.voxels[:0, :0, :0].copy())


def list_scans(path: str | Path, seriesuid: str | None = None) -> list[ScanSource]:
    """Find the scans that a path stands for; none is read yet.

    Args:
        path: a file of a scan (``readers.SUFFIXES``), or a folder of such; a folder with DICOM files in it, or one
            of these files; a LUNA16 dataset folder; or a CSV file with a column ``path`` of files and DICOM folders,
            relative to its own folder, and, if wanted, ``seriesuid``.
        seriesuid: the one scan to take of a DICOM folder, a dataset folder or a CSV file.

    Returns:
        At least one scan.

    Raises:
        LunaError: when there is none.
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        if any(path.glob("subset*/*.mhd")):
            sources = [ScanSource(file, uid) for uid, file in find_scans(path).items()]
        elif files := sorted(file for file in path.iterdir() if file.name.lower().endswith(SUFFIXES)):
            if holds_dicom(path):
                raise LunaError(f"{path}: DICOM and {files[0].name} are in one folder; name the one that is meant")
            sources = [ScanSource(file) for file in files]
        else:
            return [ScanSource(path, seriesuid)]
    elif not path.exists():
        raise LunaError(f"{path}: no such file or folder; a scan is one of {', '.join(SUFFIXES)}, or DICOM")
    elif name.endswith(".csv"):
        sources = _read_list(path)
    elif name.endswith(SUFFIXES):
        sources = [ScanSource(path)]
        if seriesuid is not None and seriesuid != scan_name(path):
            raise LunaError(f"{path}: a series can be chosen from a folder or a list of scans, not from one scan")
        return sources
    else:
        return [_series_around(path, seriesuid)]
    if seriesuid is not None:
        sources = [source for source in sources if seriesuid in (source.seriesuid, scan_name(source.path))]
        if not sources:
            raise LunaError(f"{path}: no scan of series {seriesuid} in it")
    return sources


def load_scan(source: ScanSource) -> LoadedScan:
    """Read a scan.

    Args:
        source: where it is.

    Returns:
        The scan.

    Raises:
        LunaError: when it is missing or damaged.
    """
    path = source.path
    if path.is_dir():
        series = find_dicom_series(path, source.seriesuid)
        return LoadedScan(series.seriesuid, path, read_dicom_voxels(series), series.geometry, series.files)
    voxels, geometry = map_or_read(path)
    return LoadedScan(source.seriesuid or scan_name(path), path, voxels, geometry)


def scan_name(path: Path) -> str:
    """Name a scan that is no DICOM series: its file's name without the ending, in LUNA16 the series UID."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def orient_to_lps(voxels: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """Turn the axes of a scan to run from right to left, front to back and feet to head, as nearly as they can.

    Files keep a scan in any order of its axes. The network was trained on one of them, and a slice must stay a slice.
    Nothing is resampled: an oblique scan stays oblique.

    Args:
        voxels: array (z, y, x).
        geometry: of the array.

    Returns:
        The array with its axes turned, without a copy where they are right already, and its geometry.
    """
    affine = geometry.affine_ras_zyx
    wanted = nibabel.orientations.axcodes2ornt(("S", "P", "L"))
    change = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(affine), wanted)
    if np.array_equal(change, [[0, 1], [1, 1], [2, 1]]):
        return voxels, geometry
    turned = affine @ nibabel.orientations.inv_ornt_aff(change, voxels.shape)
    voxels = np.ascontiguousarray(nibabel.orientations.apply_orientation(voxels, change))
    turned[:2] *= -1  # to LPS
    axes = turned[:3, 2::-1]
    spacing = np.linalg.norm(axes, axis=0)
    return voxels, Geometry.from_header(voxels.shape[::-1], spacing, turned[:3, 3], axes / spacing, source="scan")


def pad_with_air(voxels: np.ndarray, geometry: Geometry, shape: tuple[int, int, int]) -> tuple[np.ndarray, Geometry]:
    """Put air around a scan that is too small.

    Args:
        voxels: array (z, y, x), HU.
        geometry: of the array.
        shape: what it must have at least, z, y, x.

    Returns:
        The array, the same where it is large enough, and its geometry.
    """
    missing = np.maximum(np.subtract(shape, voxels.shape), 0)
    if not missing.any():
        return voxels, geometry
    before = missing // 2
    origin = geometry.index_to_world(-before)[0]
    voxels = np.pad(voxels, np.stack([before, missing - before], axis=1), constant_values=AIR)
    return voxels, Geometry.from_header(voxels.shape[::-1], geometry.spacing, origin, geometry.direction, source="scan")


def as_hounsfield(voxels: np.ndarray) -> tuple[np.ndarray, int]:
    """Bring voxels of any type into one that torch computes with, and count those that are no finite numbers.

    Args:
        voxels: of a CT, any integers or floating-point numbers.

    Returns:
        The array, unchanged where it is int16, int32 or float32 and finite; what is no finite number becomes air. And
        how many voxels these were.
    """
    if np.issubdtype(voxels.dtype, np.floating):
        with np.errstate(over="ignore"):
            voxels = voxels.astype(np.float32, copy=False)
        bad = ~np.isfinite(voxels)
        count = int(bad.sum())
        return (np.where(bad, np.float32(AIR), voxels) if count else voxels), count
    if voxels.dtype in (np.int16, np.int32):
        return voxels, 0
    if voxels.dtype.itemsize == 1:
        return voxels.astype(np.int16), 0
    limits = np.iinfo(np.int32)
    return np.clip(voxels, limits.min, limits.max).astype(np.int32), 0


def voxels_sha256(voxels: np.ndarray) -> str:
    """Compute a fingerprint of a scan's HU, the same whatever format and type it was stored in.

    Args:
        voxels: array (z, y, x), as :func:`orient_to_lps` and :func:`as_hounsfield` give it.

    Returns:
        SHA-256, hexadecimal, of the slices in turn: little-endian int16 where all values of a slice are such integers,
        else float32.
    """
    digest = hashlib.sha256(np.asarray(voxels.shape, dtype="<i8").tobytes())
    for one in voxels:
        short = one.astype("<i2") if one.dtype == np.int16 else _as_int16(one)
        digest.update((one.astype("<f4") if short is None else short).tobytes())
    return digest.hexdigest()


def _as_int16(values: np.ndarray) -> np.ndarray | None:
    limits = np.iinfo(np.int16)
    if not (limits.min <= values.min() and values.max() <= limits.max):
        return None
    short = values.astype("<i2")
    return short if (short == values).all() else None


def _read_list(path: Path) -> list[ScanSource]:
    table = read_table(path, numeric=[], text=["path"], optional=["seriesuid"])
    if table.empty:
        raise LunaError(f"{path}: a header line and no scans")
    sources: list[ScanSource] = []
    for number, row in enumerate(table.to_dict("records"), start=2):
        entry = path.parent / str(row["path"])
        uid = row.get("seriesuid")
        if entry.suffix.lower() == ".csv":
            raise LunaError(f"{path}, line {number}: a list of scans in a list of scans")
        source = ScanSource(entry, None if uid is None else str(uid))
        if source in sources:
            raise LunaError(f"{path}, line {number}: the same scan as in line {sources.index(source) + 2}")
        sources.append(source)
    return sources


def _series_around(path: Path, seriesuid: str | None) -> ScanSource:
    found = series_of_file(path)
    if found is None:
        raise LunaError(
            f"{path}: no scan; known are {', '.join(SUFFIXES)}, DICOM files, and a CSV file with a column 'path'"
        )
    if seriesuid not in (None, found):
        raise LunaError(f"{path}: a slice of series {found}, not of {seriesuid}")
    return ScanSource(path.parent, found)
