"""A list of candidates to classify, in whatever coordinates it is written."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
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
            voxel = ", ".join(map(str, index[where]))
            others = ", ".join(name for name in COORDINATE_SYSTEMS if name != self.coordinates)
            raise LunaError(
                f"{self.path}, line {cast(int, rows.index[where]) + 2}: ({position}) in {self.coordinates} is voxel "
                f"z,y,x ({voxel}) and lies outside of scan {seriesuid} with {geometry.shape} voxels, as do "
                f"{outside.sum() - 1} more; correct it, or say in which coordinates it is: {others}"
            )
        return points
