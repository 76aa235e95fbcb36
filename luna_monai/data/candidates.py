"""The candidate table, ``candidateInfo_list`` in the book (chapter 10.2)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from luna_monai.data.tables import ANNOTATIONS, COORDINATES, MAX_DIAMETER_MM
from luna_monai.errors import LunaError
from luna_monai.scans import ScanHeader, find_scans, read_header
from luna_monai.tables import read_table

logger = logging.getLogger(__name__)

#: Names of the candidate table, in order of preference. The book uses the first one.
CANDIDATE_FILES = ("candidates.csv", "candidates_V2.csv")
#: Allowed values of the columns, as a function and its description.
ALLOWED: dict[str, tuple[Callable[[pd.Series], pd.Series], str]] = {
    "diameter_mm": (lambda values: values.between(0, MAX_DIAMETER_MM, "right"), f"above 0, at most {MAX_DIAMETER_MM}"),
    "class": (lambda values: values.isin([0, 1]), "0 or 1"),
}


class DatasetScans(dict[str, ScanHeader]):
    """The CTs of a LUNA16 dataset folder: a dict of headers by series UID, each read on first access.

    The folder is listed once. Functions with a ``dataset_dir`` argument also accept this object, and then do not list
    the folder again.

    Args:
        dataset_dir: folder with ``subset0 … subset9``, or some of them.

    Attributes:
        dataset_dir: the folder.
        paths: the ``.mhd`` file of each series, by series UID.

    Raises:
        LunaError: when the folder is missing, or two subsets contain the same series.
    """

    def __init__(self, dataset_dir: str | Path) -> None:
        super().__init__()
        self.dataset_dir = Path(dataset_dir)
        self.paths = find_scans(self.dataset_dir)

    @classmethod
    def of(cls, dataset_dir: str | Path | DatasetScans) -> DatasetScans:
        """Return the argument if it is a :class:`DatasetScans`; else list the folder."""
        return dataset_dir if isinstance(dataset_dir, DatasetScans) else cls(dataset_dir)

    def __missing__(self, seriesuid: str) -> ScanHeader:
        if seriesuid not in self.paths:
            raise LunaError(f"{self.dataset_dir}: no CT of series {seriesuid}; pass the dataset_dir of the candidates")
        return self.setdefault(seriesuid, read_header(self.paths[seriesuid]))


def subset_of(path: Path) -> int:
    """Return N for a scan in a folder ``subsetN``.

    Raises:
        LunaError: when the folder has another name.
    """
    match = re.fullmatch(r"subset(\d+)", path.parent.name)
    if match is None:
        raise LunaError(f"{path}: the folder of a scan must be named subset0 … subset9; rename it")
    return int(match[1])


def candidate_table(dataset_dir: Path, candidates_file: str | None = None) -> Path:
    """Return the path of the candidate table of a folder.

    Args:
        dataset_dir: LUNA16 dataset folder.
        candidates_file: name of the table; None for the first of ``CANDIDATE_FILES`` that exists.

    Raises:
        LunaError: when there is no such file.
    """
    names = CANDIDATE_FILES if candidates_file is None else (candidates_file,)
    path = next((dataset_dir / name for name in names if (dataset_dir / name).is_file()), None)
    if path is None:
        raise LunaError(f"{dataset_dir}: no {' or '.join(names)} in this folder; copy this table of LUNA16 to it")
    return path


def read_candidates(
    dataset_dir: str | Path | DatasetScans, *, candidates_file: str | None = None, outside_volume: str = "error"
) -> pd.DataFrame:
    """Read the candidates of a LUNA16 dataset with their diameters, in the order of the book.

    A candidate gets the diameter of the first annotation of its series, in file order, whose center is at most a
    quarter of the annotation's diameter away along each axis; without such an annotation, it gets 0 (chapter 10.2.2).
    Rows are in descending order of (is nodule, diameter, seriesuid, (x, y, z)). Rows whose CT is not on disk are
    dropped, and their number is logged.

    Args:
        dataset_dir: LUNA16 dataset folder.
        candidates_file: name of the candidate table in ``dataset_dir``. None uses ``candidates.csv`` if it exists, else
            ``candidates_V2.csv``.
        outside_volume: what to do with candidates whose voxel is outside their CT: ``"error"`` or ``"drop"``.

    Returns:
        ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (world, LPS, mm), ``class`` (0 or 1) and ``diameter_mm``,
        indexed from 0. Datasets and predictions refer to this index as ``row``.

    Raises:
        LunaError: when a table is missing or damaged, a class is neither 0 nor 1, no row has a CT on disk, or a
            candidate is outside its CT and ``outside_volume`` is ``"error"``.
    """
    scans = DatasetScans.of(dataset_dir)
    dataset_dir = scans.dataset_dir
    path = candidate_table(dataset_dir, candidates_file)
    annotations = read_table(dataset_dir / ANNOTATIONS, [*COORDINATES, "diameter_mm"], allowed=ALLOWED)
    candidates = read_table(path, [*COORDINATES, "class"], allowed=ALLOWED)
    candidates["class"] = candidates["class"].astype(int)

    on_disk = candidates["seriesuid"].isin(list(scans.paths))
    if not on_disk.any():
        found = f"found {len(scans.paths)} scans in {dataset_dir}/subset*/*.mhd"
        raise LunaError(f"{path}: none of its {candidates['seriesuid'].nunique()} series has a CT on disk; {found}")
    if not on_disk.all():
        counts = (~on_disk).sum(), len(on_disk), candidates.loc[~on_disk, "seriesuid"].nunique()
        text = "%s: %d of %d candidates dropped, because the CTs of %d series are not in %s"
        logger.info(text, path.name, *counts, dataset_dir)
        candidates = candidates[on_disk].reset_index(drop=True)
    candidates["diameter_mm"] = _match_diameters(candidates, annotations)
    if outside := outside_of(candidates, scans):
        found = f"{path}: {len(outside)} candidates lie outside their CT: {'; '.join([*outside.values()][:5])}"
        if outside_volume == "error":
            raise LunaError(f"{found}; correct the table, or set outside_volume=drop to drop them")
        logger.info("%s; they are dropped", found)
        candidates = candidates.drop(index=list(outside)).reset_index(drop=True)

    series_rank = pd.factorize(candidates["seriesuid"], sort=True)[0]
    keys = [series_rank, candidates["diameter_mm"], candidates["class"]]
    # The last key of lexsort is the most significant. Equal rows keep their file order, as in the book's sort.
    order = np.lexsort([-np.asarray(key) for key in [*(candidates[axis] for axis in reversed(COORDINATES)), *keys]])
    table = candidates.iloc[order].reset_index(drop=True)
    table.attrs["dataset_dir"] = str(dataset_dir)
    return table


def _match_diameters(candidates: pd.DataFrame, annotations: pd.DataFrame) -> pd.Series:
    pairs = annotations.merge(candidates.reset_index(names="row"), on="seriesuid")  # in the order of the annotations
    offsets = pairs[[f"{axis}_x" for axis in COORDINATES]].to_numpy() - pairs[[f"{axis}_y" for axis in COORDINATES]]
    is_near = (np.abs(offsets) <= pairs[["diameter_mm"]].to_numpy() / 4).all(axis=1)
    return pairs[is_near].drop_duplicates("row").set_index("row")["diameter_mm"].reindex(candidates.index, fill_value=0)


def outside_of(table: pd.DataFrame, scans: Mapping[str, ScanHeader]) -> dict[int, str]:
    """Find the rows of a table whose position is outside the CT.

    Args:
        table: rows with ``seriesuid`` and world positions (LPS, mm).
        scans: headers of the CTs, by series UID.

    Returns:
        A text with series, position and voxel, by row index.
    """
    found = {}
    positions, index = table[COORDINATES].to_numpy(), table.index.to_numpy()
    for seriesuid, rows in table.groupby("seriesuid", sort=False).indices.items():
        geometry = scans[str(seriesuid)].geometry
        points = positions[rows]
        # Not rounded, because a half is rounded to another voxel if the axes are flipped.
        index_irc = geometry.world_to_continuous_index(points)
        outside = (index_irc <= -0.5) | (index_irc >= np.subtract(geometry.shape, 0.5))
        for number in np.flatnonzero(outside.any(axis=1)):
            place = points[number], geometry.world_to_index(points[number])[0]
            world, voxel = (", ".join(f"{value:g}" for value in values) for values in place)
            text = f"{seriesuid} at ({world}) mm = voxel z,y,x ({voxel}) of {geometry.shape}"
            found[int(index[np.asarray(rows)[number]])] = text
    return found
