"""A dataset whose items are scans with their candidates, and its loader."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from luna_monai.data.datasets import read_ahead
from luna_monai.data.tables import COORDINATES
from luna_monai.detection.grid import grid_at
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.detection.proposals import BlobProposer
from luna_monai.errors import LunaError
from luna_monai.predictions.result import nearest_voxels
from luna_monai.scans import Geometry, Scan, ScanHeader, ScanSource, read_scan
from luna_monai.scans.voxels import AIR, voxels_sha256
from luna_monai.tables import read_table

#: Largest distance between slices in LUNA16, mm.
THICKEST_SLICES = 2.5


@dataclass(eq=False)
class ScanDataset(torch.utils.data.Dataset):
    """A dataset whose items are scans with their candidates.

    Item ``i`` is a dict with these keys:

    - ``number``: ``i``;
    - ``image``: the scan, (1, z, y, x) in HU, int16 or float32, oriented to LPS as in training and padded with air to
      at least ``spatial_size``;
    - ``geometry``: geometry of ``image``;
    - ``centers``: voxels of the candidates in ``image``, z, y, x, int64 (n, 3);
    - ``points``: positions of the candidates, x, y, z in LPS mm, float64 (n, 3);
    - ``lungs``: the :class:`~luna_monai.detection.lungs.Lungs`;
    - ``header``: the :class:`~luna_monai.scans.ScanHeader`;
    - ``voxels_sha256``: SHA-256 of the HU;
    - ``warnings``: tuple of texts.

    For a scan that cannot be read, the item contains ``number``, ``error``, an empty ``image`` and no candidates, so
    that the evaluator continues with the other scans.

    Args:
        data: the sources of the scans, or their headers.
        candidates: CSV file with ``coordX``, ``coordY``, ``coordZ``, and ``seriesuid`` if there are several scans.
            Other columns are ignored. None for the proposals of ``proposer``.
        coordinates: coordinate system of ``candidates``: ``lps``, mm towards left, posterior and superior, as in LUNA16
            and DICOM; ``ras``, mm towards right, anterior and superior, as in NIfTI; or ``voxel``, indices x, y, z from
            0 in the axis order of the file.
        proposer: proposes candidates. ``proposer(volume, geometry, lungs)`` returns a table with ``coordX``,
            ``coordY``, ``coordZ``.
        examine: checks a scan. ``examine(volume, geometry, lungs)`` returns warnings. None for no check.
        spatial_size: shape of a candidate in voxels, z, y, x.

    Raises:
        LunaError: if the file of candidates is missing or damaged, or has no ``seriesuid`` for several scans.
    """

    data: Sequence[ScanSource | ScanHeader]
    candidates: str | Path | None = None
    coordinates: str = "lps"
    proposer: Callable[[np.ndarray, Geometry, Lungs], pd.DataFrame] = field(default_factory=BlobProposer)
    examine: Callable[[np.ndarray, Geometry, Lungs], Sequence[str]] | None = None
    spatial_size: Sequence[int] = (32, 48, 48)

    def __post_init__(self) -> None:
        self._listed: pd.DataFrame | None = None
        if self.candidates is not None:
            self._listed = read_table(self.candidates, COORDINATES, text=[], optional=["seriesuid"])
            if "seriesuid" not in self._listed and len(self.data) > 1:
                raise LunaError(f"{self.candidates}: no column 'seriesuid'; a list for several scans needs it")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"number": index, **self._load(read_scan(self.data[index]))}
        except LunaError as error:
            centers = torch.empty((0, 3), dtype=torch.int64)
            return {"number": index, "image": torch.empty((1, 0, 0, 0)), "centers": centers, "error": str(error)}

    def _load(self, scan: Scan) -> dict[str, Any]:
        voxels, geometry, warnings = scan.voxels, scan.geometry, list(scan.warnings)
        apart = geometry.spacing[2]
        if apart > THICKEST_SLICES * 1.01:
            warnings.append(f"slices are {apart:.3g} mm apart, more than the {THICKEST_SLICES:g} mm of LUNA16's scans")
        lungs = find_lungs(voxels, geometry)
        if self.examine is not None:
            warnings += self.examine(voxels, geometry, lungs)
        if self._listed is None:
            points = self.proposer(voxels, geometry, lungs)[COORDINATES].to_numpy(dtype=float)
        else:
            points = self._points(self._listed, scan, warnings)
        padded, grid = pad_with_air(voxels, geometry, self.spatial_size)
        if padded is not voxels:
            size = " x ".join(map(str, voxels.shape))
            warnings.append(f"the scan ({size} voxels z, y, x) is smaller than the crop; padded with air ({AIR} HU)")
        return {
            "image": torch.from_numpy(padded)[None],
            "geometry": grid,
            "centers": torch.from_numpy(nearest_voxels(grid, points)),
            "points": torch.from_numpy(points.copy()),
            "lungs": lungs,
            "header": scan.header,
            "voxels_sha256": voxels_sha256(voxels),
            "warnings": tuple(warnings),
        }

    def _points(self, table: pd.DataFrame, scan: Scan, warnings: list[str]) -> np.ndarray:
        """Return the candidates of a scan, (n, 3) in LPS mm. Coordinates given in LPS are not changed."""
        if "seriesuid" in table:
            table = table[table["seriesuid"] == scan.seriesuid]
        if table.empty and len(self.data) == 1:
            raise LunaError(f"{self.candidates}: no candidates of scan {scan.seriesuid}; add at least one")
        if table.empty:
            warnings.append("no candidates are listed for this scan")
        geometry, given = scan.header.geometry, table[COORDINATES].to_numpy(dtype=float)
        systems = {"lps": given, "ras": given * [-1, -1, 1], "voxel": geometry.index_to_world(given[:, ::-1])}
        index = geometry.world_to_index(systems[self.coordinates])
        outside = ((index < 0) | (index >= geometry.shape)).any(axis=1)
        if outside.any():
            row = int(outside.argmax())
            place, voxel = given[row].tolist(), index[row].tolist()
            found = f"{place} in {self.coordinates} is voxel {voxel}, outside scan {scan.seriesuid}"
            advice = f"correct it, or choose other --coordinates: {', '.join(systems)}"
            raise LunaError(f"{self.candidates}, line {table.index[row]}: {found}; {advice}")
        return systems[self.coordinates]


def pad_with_air(voxels: np.ndarray, geometry: Geometry, shape: Sequence[int]) -> tuple[np.ndarray, Geometry]:
    """Pad a scan with air if it is too small.

    Args:
        voxels: HU (z, y, x).
        geometry: geometry of ``voxels``.
        shape: smallest shape of the result, z, y, x.

    Returns:
        The padded array and its geometry. An array that is large enough is returned as it is.
    """
    missing = np.maximum(np.subtract(shape, voxels.shape), 0)
    if not missing.any():
        return voxels, geometry
    before = missing // 2
    voxels = np.pad(voxels, np.stack([before, missing - before], axis=1), constant_values=AIR)
    return voxels, grid_at(geometry, -before, voxels.shape)


@dataclass(eq=False)
class ScanLoader:
    """Iterates over the items of a dataset, and reads the next items ahead in threads.

    ``DataLoader`` sends each scan through shared memory, which is small in containers. MONAI's ``ThreadDataLoader``
    ends without an error if its thread fails.

    Args:
        dataset: dataset of scans.
        num_workers: number of scans that are read ahead, each in a thread; 0 to read each scan when it is needed.
        sampler: indices of the items; None for all items in order.
    """

    dataset: ScanDataset
    num_workers: int = 0
    sampler: Iterable[int] | None = None

    def __post_init__(self) -> None:
        self.indices = range(len(self.dataset)) if self.sampler is None else list(self.sampler)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return read_ahead(self.dataset.__getitem__, self.indices, self.num_workers)
