"""Which scans a path stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luna_monai.errors import LunaError

#: Modules that read files, by how the names of these end.
READERS = {".mhd": "metaimage", ".mha": "metaimage", ".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd"}
SUFFIXES = tuple(READERS)


@dataclass(frozen=True)
class ScanSource:
    """Where a scan is.

    Attributes:
        path: a file, or a folder with DICOM files in it.
        seriesuid: which series of a DICOM folder; for any other scan, its name in place of the file's.
    """

    path: Path
    seriesuid: str | None = None


def suffix_of(path: Path) -> str | None:
    """Find which of ``SUFFIXES`` a file has; None for hidden files, such as the ``._NAME`` that macOS leaves behind."""
    name = path.name.lower()
    found = (suffix for suffix in SUFFIXES if name.endswith(suffix) and not name.startswith("."))
    return max(found, key=len, default=None)


def scan_name(path: Path) -> str:
    """Name a scan that is not a DICOM series: its file's name without the ending, in LUNA16 the series UID."""
    return path.name[: -len(suffix_of(path) or "")] or path.name


def find_scans(dataset_dir: str | Path) -> dict[str, Path]:
    """Find the CTs of a LUNA16 dataset folder.

    Args:
        dataset_dir: folder with ``subset0 … subset9``, any number of them.

    Returns:
        The ``.mhd`` file of each series, by series UID, sorted by it.

    Raises:
        LunaError: when the folder is missing, or two subsets hold the same series.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise LunaError(f"{dataset_dir}: no such folder; dataset_dir holds LUNA16's subset0 … subset9 and tables")
    scans: dict[str, Path] = {}
    for path in sorted(dataset_dir.glob("subset*/*.mhd"), key=lambda path: path.stem):
        if suffix_of(path) is None:
            continue
        if path.stem in scans:
            raise LunaError(f"{path}: the same series is also in {scans[path.stem].parent}; remove one of the two")
        scans[path.stem] = path
    return scans


def list_scans(path: str | Path, seriesuid: str | None = None) -> list[ScanSource]:
    """Find the scans that a path stands for; none is read yet.

    Args:
        path: a file of a scan (``SUFFIXES``), or a folder of such; a folder with DICOM files in it, or one of these
            files; a LUNA16 dataset folder; or a CSV file with a column ``path`` of files and DICOM folders, relative
            to its own folder, and, if wanted, ``seriesuid``.
        seriesuid: the one scan to take of a DICOM folder, a dataset folder or a CSV file.

    Returns:
        At least one scan.

    Raises:
        LunaError: when there is none.
    """
    path = Path(path)
    if any(path.glob("subset*/*.mhd")):
        sources = [ScanSource(file, uid) for uid, file in find_scans(path).items()]
    elif path.is_dir():
        sources = [ScanSource(file) for file in sorted(path.iterdir()) if suffix_of(file)]
        if not sources:
            return [ScanSource(path, seriesuid)]
    elif not path.exists():
        raise LunaError(f"{path}: no such file or folder; a scan is one of {', '.join(SUFFIXES)}, or DICOM")
    elif path.name.lower().endswith(".csv"):
        sources = _read_list(path)
    elif suffix_of(path):
        sources = [ScanSource(path)]
    else:
        from luna_monai.scans.dicom import series_of_file

        if not (found := series_of_file(path)):
            raise LunaError(f"{path}: not a scan; known are {', '.join(SUFFIXES)}, DICOM, and CSV with a column 'path'")
        sources = [ScanSource(path.parent, found)]
    if seriesuid is not None:
        sources = [source for source in sources if seriesuid in (source.seriesuid, scan_name(source.path))]
    if not sources:
        raise LunaError(f"{path}: no scan{'' if seriesuid is None else f' of series {seriesuid}'} in it")
    return sources


def _read_list(path: Path) -> list[ScanSource]:
    from luna_monai.tables import read_table  # pandas takes half a second

    table = read_table(path, [], text=["path"], optional=["seriesuid"]).reindex(columns=["path", "seriesuid"])
    return [ScanSource(path.parent / file, uid if isinstance(uid, str) else None) for file, uid in table.to_numpy()]
