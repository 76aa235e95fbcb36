"""Scans as the items of a dataset, with the candidates to classify."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from luna_monai.data.tables import COORDINATES
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import ScanHeader
from luna_monai.scans.scan import read_scan
from luna_monai.scans.sources import ScanSource
from luna_monai.scans.voxels import AIR, voxels_sha256
from luna_monai.tables import read_table

#: What the numbers of a list may be: mm towards left, posterior and superior, as in LUNA16 and DICOM; mm towards right,
#: anterior and superior, as in NIfTI; or voxel indices x, y, z from 0 in the order of the file.
COORDINATE_SYSTEMS = ("lps", "ras", "voxel")


class CandidateList:
    """Candidates from a CSV file, for one or many scans.

    Args:
        path: CSV file with ``coordX``, ``coordY``, ``coordZ``, and ``seriesuid`` if it is for several scans; other
            columns are ignored.
        coordinates: one of ``COORDINATE_SYSTEMS``.

    Raises:
        LunaError: when the file is missing, empty or damaged.
    """

    def __init__(self, path: str | Path, coordinates: str = "lps") -> None:
        self.path = Path(path)
        self.coordinates = coordinates
        if not self.path.is_file():
            raise LunaError(f"{path}: no such file; expected a CSV file with {','.join(COORDINATES)}")
        self.table = read_table(self.path, COORDINATES, text=[], optional=["seriesuid"])
        if self.table.empty:
            raise LunaError(f"{path}: a header line and no candidates")

        #: The scans that the list names; None where it names none.
        self.seriesuids = sorted(set(self.table["seriesuid"])) if "seriesuid" in self.table else None

    def points(self, seriesuid: str, geometry: Geometry) -> np.ndarray:
        """Give the candidates of a scan.

        Args:
            seriesuid: what the scan is called.
            geometry: of the scan, in the order of its file.

        Returns:
            (n, 3) positions in LPS mm, in the order of the list; LPS positions are those of the file to the bit.

        Raises:
            LunaError: when a candidate lies outside of the scan.
        """
        rows = self.table if self.seriesuids is None else self.table[self.table["seriesuid"] == seriesuid]
        given = rows[COORDINATES].to_numpy(dtype=float)
        points = geometry.index_to_world(given[:, ::-1]) if self.coordinates == "voxel" else given
        if self.coordinates == "ras":
            points = given * [-1, -1, 1]
        index = geometry.world_to_index(points)
        outside = ((index < 0) | (index >= geometry.shape)).any(axis=1)
        if outside.any():
            where = int(outside.argmax())
            position = ", ".join(f"{value:g}" for value in given[where])
            voxel, line = ", ".join(map(str, index[where])), cast(int, rows.index[where]) + 2
            others = ", ".join(name for name in COORDINATE_SYSTEMS if name != self.coordinates)
            raise LunaError(
                f"{self.path}, line {line}: ({position}) in {self.coordinates} is voxel z,y,x ({voxel}), outside of "
                f"scan {seriesuid} with {geometry.shape} voxels; correct it, or name its coordinates: {others}"
            )
        return points


#: Slices of LUNA16's scans are no further apart, in mm.
THICKEST_SLICES = 2.5


@dataclass(eq=False)
class ScanDataset(torch.utils.data.Dataset):
    """Scans with their candidates, one an item.

    Item ``i`` is a dict with ``number``, which is ``i``; ``image``, (1, z, y, x) in HU, int16, int32 or float32, its
    axes turned to LPS as in training and padded with air to ``spatial_size`` at least; ``geometry``, that of ``image``;
    ``centers``, int64 (n, 3), the candidates' voxels z, y, x in it; ``points``, float64 (n, 3), LPS mm; ``index``,
    int64 (n, 3), voxels z, y, x in the order of the file; ``lungs``, None where
    neither ``proposer`` nor ``examine`` needs them; ``header``, the
    :class:`~luna_monai.scans.ScanHeader`; ``voxels_sha256``; ``warnings``, a tuple of text.

    A scan that cannot be read gives an item with ``number`` and ``error``, and an empty image without candidates: one
    bad scan must not end the work on many.

    ``proposer`` and ``examine`` are called with the voxels (z, y, x) in HU, their geometry and the
    :class:`~luna_monai.detection.lungs.Lungs`, which are found once for both.

    Args:
        data: where the scans are.
        candidates: the list of candidates; proposals of ``proposer`` when None.
        proposer: finds candidates, ``proposer(volume, geometry, lungs)`` gives a table with ``coordX, coordY, coordZ``.
        examine: tells what is unusual about a scan, ``examine(volume, geometry, lungs)`` gives texts.
        spatial_size: voxels of a candidate, z, y, x.
    """

    data: Sequence[ScanSource]
    candidates: CandidateList | None = None
    proposer: Callable[[np.ndarray, Geometry, Lungs | None], pd.DataFrame] | None = None
    examine: Callable[[np.ndarray, Geometry, Lungs | None], Sequence[str]] | None = None
    spatial_size: Sequence[int] = (32, 48, 48)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"number": index, **self._load(self.data[index])}
        except LunaError as error:
            centers = torch.empty((0, 3), dtype=torch.int64)
            return {"number": index, "image": torch.empty((1, 0, 0, 0)), "centers": centers, "error": str(error)}

    def _load(self, source: ScanSource) -> dict[str, Any]:
        scan = read_scan(source)
        voxels, geometry, warnings = scan.voxels, scan.geometry, list(scan.warnings)
        if geometry.spacing[2] > THICKEST_SLICES * 1.01:
            warnings.append(
                f"slices are {geometry.spacing[2]:.3g} mm apart, more than in the scans that the model was made for "
                f"(at most {THICKEST_SLICES:g} mm)"
            )
        lungs = None if self.examine is None and self.candidates is not None else find_lungs(voxels, geometry)
        if self.examine is not None:
            warnings.extend(self.examine(voxels, geometry, lungs))
        if self.candidates is not None:
            points = self._listed_points(self.candidates, scan.header, warnings)
        else:
            assert self.proposer is not None, "candidates or a proposer are needed"
            proposals = self.proposer(voxels, geometry, lungs)
            points = proposals[COORDINATES].to_numpy(dtype=float).reshape(-1, 3)
        padded, grid = pad_with_air(voxels, geometry, self.spatial_size)
        if padded is not voxels:
            size = " x ".join(map(str, voxels.shape))
            warnings.append(f"the scan ({size} voxels z, y, x) is smaller than the crop; padded with air ({AIR} HU)")
        return {
            "image": torch.from_numpy(padded)[None],
            "geometry": grid,
            "centers": torch.from_numpy(_index_in(grid, points)),
            "points": torch.from_numpy(points.copy()),
            "index": torch.from_numpy(_index_in(scan.header.geometry, points)),
            "lungs": lungs,
            "header": scan.header,
            "voxels_sha256": voxels_sha256(voxels),
            "warnings": tuple(warnings),
        }

    def _listed_points(self, candidates: CandidateList, scan: ScanHeader, warnings: list[str]) -> np.ndarray:
        listed = candidates.seriesuids
        if listed is None and len(self.data) > 1:
            raise LunaError(f"{candidates.path}: no column 'seriesuid', which a list for several scans must have")
        if listed is not None and scan.seriesuid not in listed:
            if len(self.data) == 1:
                known = ", ".join(listed[:3])
                raise LunaError(f"{candidates.path}: no candidates of scan {scan.seriesuid}, only of {known}")
            warnings.append("no candidates are listed for this scan")
        return candidates.points(scan.seriesuid, scan.geometry)


def _index_in(geometry: Geometry, points: np.ndarray) -> np.ndarray:
    # The peak of a proposal at the face of a scan may lie half a voxel outside.
    return np.clip(geometry.world_to_index(points), 0, np.asarray(geometry.shape) - 1)


def pad_with_air(voxels: np.ndarray, geometry: Geometry, shape: Sequence[int]) -> tuple[np.ndarray, Geometry]:
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
    voxels = np.pad(voxels, np.stack([before, missing - before], axis=1), constant_values=AIR)
    x, y, z = geometry.index_to_world(-before)[0].tolist()
    return voxels, Geometry(voxels.shape[::-1], geometry.spacing, (x, y, z), geometry.direction)


class ScanLoader:
    """Gives the items of a dataset one after the other and reads the next ones ahead, in threads.

    ``DataLoader`` would send each scan through shared memory, of which containers have little, and MONAI's
    ``ThreadDataLoader`` ends without an error when its thread meets one.

    Args:
        dataset: of scans.
        num_workers: number of scans that are read ahead, each in a thread; 0 reads each when it is needed.
        sampler: indices of the items; all in their order when None.
    """

    def __init__(self, dataset: ScanDataset, num_workers: int = 0, sampler: Iterable[int] | None = None) -> None:
        self.dataset = dataset
        self.num_workers = num_workers
        self.indices = range(len(dataset)) if sampler is None else list(sampler)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(max(self.num_workers, 1), thread_name_prefix="read-ahead") as pool:
            waiting: deque[Future[dict[str, Any]]] = deque()
            for index in self.indices:
                waiting.append(pool.submit(self.dataset.__getitem__, index))
                if len(waiting) > self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
