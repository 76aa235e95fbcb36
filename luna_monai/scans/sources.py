"""Finding the scans of a path."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luna_monai.errors import LunaError

#: Modules that read files, by file suffix.
READERS = {".mhd": "metaimage", ".mha": "metaimage", ".nii": "nifti", ".nii.gz": "nifti", ".nrrd": "nrrd"}
SUFFIXES = tuple(READERS)


@dataclass(frozen=True)
class ScanSource:
    """The location of a scan.

    Attributes:
        path: a file, or a folder that contains DICOM files.
        seriesuid: the series to read in a DICOM folder; for other formats, the series UID to use instead of the file
            name.
        files: all files below a DICOM folder, if it has been listed.
    """

    path: Path
    seriesuid: str | None = None
    files: tuple[Path, ...] = ()


def suffix_of(path: Path) -> str | None:
    """Return which of ``SUFFIXES`` a file has; None for other and for hidden files, such as ``._NAME`` of macOS."""
    name = path.name.lower()
    found = (suffix for suffix in SUFFIXES if name.endswith(suffix) and not name.startswith("."))
    return max(found, key=len, default=None)


def scan_name(path: Path) -> str:
    """Return the file name of a scan without its suffix, which is the series UID in LUNA16, in valid Unicode."""
    return os.fsencode(path.name[: -len(suffix_of(path) or "")] or path.name).decode(errors="replace")


def find_scans(dataset_dir: str | Path) -> dict[str, Path]:
    """Find the CTs of a LUNA16 dataset folder.

    Args:
        dataset_dir: folder with ``subset0 … subset9``, or some of them.

    Returns:
        The ``.mhd`` file of each series, by series UID, in sorted order.

    Raises:
        LunaError: when the folder is missing, or two subsets contain the same series.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise LunaError(f"{dataset_dir}: no such folder; dataset_dir contains LUNA16's subset0 … subset9 and tables")
    return _in_subsets(dataset_dir.glob("subset*"))


def _in_subsets(folders: Iterable[Path]) -> dict[str, Path]:
    scans: dict[str, Path] = {}
    for name, path in subset_files(folders):
        if name in scans:
            raise LunaError(f"{path}: the same series is also in {scans[name]}; remove one of the two")
        scans[name] = path
    return scans


def subset_files(folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """List the CT files of LUNA16 subsets.

    Args:
        folders: folders; those that are no ``subset*`` are ignored.

    Returns:
        The series UID and the path of each file, sorted, copies last. The UID is the name of the file. A copy, to whose
        name a browser or file manager has added "(1)" or "- Copy", has the UID of its original, if that exists.
    """
    subsets = [folder for folder in folders if folder.name.startswith("subset") and folder.is_dir()]
    # Not glob(), which skips folders that cannot be read.
    paths = [path for folder in subsets for path in next(walk(folder), ([], []))[1] if suffix_of(path) == ".mhd"]
    stems = {path.stem for path in paths}
    names = ((re.sub(r"(?i)[ _-]*(\(\d+\)|\(?copy.*)$", "", path.stem), path) for path in paths)
    found = ((name if name in stems else path.stem, path) for name, path in names)
    return sorted(found, key=lambda one: (one[0], one[0] != one[1].stem, one[1]))


def walk(folder: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """List a folder and its subfolders, also behind symbolic links, each once.

    Args:
        folder: the folder.

    Yields:
        For each folder its subfolders and its files, each sorted. Those of ``folder`` are first.
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, onerror=_cannot_list, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
        else:
            seen.add(real)
            yield [Path(parent, name) for name in folders], [Path(parent, name) for name in sorted(names)]


def _cannot_list(error: OSError) -> None:
    # Folders of the operating system, and those that were removed in the meantime, contain no scans.
    system = Path(error.filename).name.startswith((".", "$", "lost+found", "System Volume Information"))
    if not system and not isinstance(error, FileNotFoundError):
        raise LunaError(f"{error.filename}: cannot be listed ({error.strerror}); allow it, or choose another folder")


def is_ct(path: Path) -> bool:
    """Check whether a file is a readable DICOM image of a CT."""
    from luna_monai.scans.dicom_slice import CTS, read_dicom_file  # pydicom takes half a second

    try:
        file = read_dicom_file(path) if path.is_file() else None
    except LunaError:
        return False
    return file is not None and file.sop_class in CTS


def list_scans(path: str | Path, seriesuid: str | None = None) -> list[ScanSource]:
    """List the scans of a path, without reading them.

    Args:
        path: a scan file with one of ``SUFFIXES``, or a folder of such files; a DICOM file, or a folder that contains
            DICOM files; a LUNA16 dataset folder; or a CSV file with a column ``path`` and an optional column
            ``seriesuid``. The paths in it are those of files and DICOM folders, relative to the folder of the CSV file.
        seriesuid: the scan to choose from several.

    Returns:
        At least one scan.

    Raises:
        LunaError: when there is no scan.
    """
    path = Path(path)
    if path.is_dir():
        listing = walk(path)
        folders, files = next(listing, ([], []))
        sources = [ScanSource(file, uid) for uid, file in _in_subsets(folders).items()]
        if not sources:
            everything = (*files, *(file for _, more in listing for file in more))
            loose = [file for file in files if suffix_of(file)]
            if not loose:
                return [ScanSource(path, seriesuid, everything)]
            if any(is_ct(file) for file in everything if not suffix_of(file) and "raw" not in file.suffix):
                raise LunaError(f"{path}: contains DICOM slices and also {loose[0].name}; give a folder of one kind")
            sources = [ScanSource(file) for file in loose]
    elif not path.exists():
        raise LunaError(f"{path}: no such file or folder; supported: {', '.join(SUFFIXES)}, and DICOM")
    elif path.name.lower().endswith(".csv"):
        sources = _read_list(path)
    elif suffix_of(path):
        sources = [ScanSource(path)]
    else:
        from luna_monai.scans.dicom_slice import read_dicom_file

        file = read_dicom_file(path)
        if file is None or not (found := file.text("SeriesInstanceUID")):
            raise LunaError(f"{path}: not a scan; supported: {', '.join(SUFFIXES)}, DICOM, and CSV with column 'path'")
        sources = [ScanSource(path.parent, found)]
    if seriesuid is not None:
        sources = [source for source in sources if seriesuid in (source.seriesuid, scan_name(source.path))]
    if not sources:
        raise LunaError(f"{path}: contains no scan{'' if seriesuid is None else f' of series {seriesuid}'}")
    return sources


def _read_list(path: Path) -> list[ScanSource]:
    from luna_monai.tables import read_table  # pandas takes half a second

    table = read_table(path, [], text=["path"], optional=["seriesuid"]).reindex(columns=["path", "seriesuid"])
    return [ScanSource(path.parent / file, uid if isinstance(uid, str) else None) for file, uid in table.to_numpy()]
