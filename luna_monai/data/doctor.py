"""Looking through a LUNA16 dataset folder for whatever would stop, or quietly spoil, a training."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from luna_monai.data.candidates import CANDIDATE_FILES
from luna_monai.data.doctor_findings import ERROR, INFORMATION, WARNING, Finding
from luna_monai.data.doctor_voxels import VoxelSummary, summarize_scans
from luna_monai.data.tables import COORDINATES, read_table
from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.scan import read_header

#: Scans in subset0 … subset9 of LUNA16; 888 together.
LUNA16_SUBSETS = (89, 89, 89, 89, 89, 89, 89, 89, 88, 88)
#: A subset with at least so many scans is taken for a copy of LUNA16's that is not whole.
NEARLY_COMPLETE = 80
#: Spacings in LUNA16 are 0.46 to 0.98 mm in the slice and 0.45 to 2.5 mm across; these limits leave some room.
IN_PLANE_MM = (0.3, 1.2)
ACROSS_MM = (0.2, 3.5)
#: The block that is cut around a candidate, z, y, x; a smaller scan has no place for it.
BLOCK = (32, 48, 48)
#: HU that air and lung have, and the least part of a chest CT that they make up; in LUNA16 it is a third and more.
AIR_HU = (-1100, -600)
AIR_FRACTION = 0.02
#: What scanners write outside the field of view is -1024 or far below it; training clips both to -1000.
LOWEST_HU = -1024


def examine_dataset(
    dataset_dir: str | Path, *, deep: bool = False, expect_complete: bool = False, num_workers: int = 1
) -> list[Finding]:
    """Look for everything that is wrong with a LUNA16 dataset folder.

    A part of LUNA16 is a legitimate dataset, so missing scans are only mentioned. They are warnings where a subset
    is nearly complete or ``seriesuids.csv`` names them, and errors where ``seriesuids.csv`` names them although all
    ten subsets are there, or with ``expect_complete``.

    Args:
        dataset_dir: LUNA16 dataset folder.
        deep: whether to read all voxels too, which takes about a second a scan.
        expect_complete: whether anything less than the 888 scans of LUNA16 is wrong.
        num_workers: threads that read voxels; each holds one scan.

    Returns:
        What was found, errors first.

    Raises:
        LunaError: when there is no such folder.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise LunaError(f"{dataset_dir}: no such folder; give the one that holds subset0 … subset9 and the tables")
    examination = _Examination(dataset_dir, expect_complete)
    examination.files()
    examination.tables()
    if deep:
        examination.voxels(num_workers)
    order = (ERROR, WARNING, INFORMATION)
    return sorted(examination.findings, key=lambda finding: (order.index(finding.severity), finding.code))


class _Examination:
    def __init__(self, dataset_dir: Path, expect_complete: bool) -> None:
        self.dataset_dir = dataset_dir
        self.expect_complete = expect_complete
        self.findings: list[Finding] = []
        self.scans: dict[str, Path] = {}
        self.geometries: dict[str, Geometry] = {}

    def add(self, severity: str, code: str, subject: str | Path, message: str) -> None:
        if isinstance(subject, Path):
            subject = str(subject.relative_to(self.dataset_dir))
        self.findings.append(Finding(severity, code, subject, message))

    # ---------------------------------------------------------------------------------------------------------- files
    def files(self) -> None:
        headers = sorted(self.dataset_dir.glob("subset*/*.mhd"))
        misplaced = [*self.dataset_dir.glob("*.mhd"), *self.dataset_dir.glob("subset*/*/*.mhd")]
        for path in sorted(misplaced):
            self.add(WARNING, "misplaced-scan", path, f"lies in {path.parent}")
        owners: dict[Path, Path] = {}
        for path in headers:
            if path.name.startswith("."):
                self.add(WARNING, "stray-file", path, "is no CT, but is named like one")
                continue
            if re.fullmatch(r"subset\d", path.parent.name) is None:
                self.add(ERROR, "misplaced-scan", path, f"{path.parent.name} is none of LUNA16's subset0 … subset9")
            if path.stem in self.scans:
                other = self.scans[path.stem].relative_to(self.dataset_dir)
                self.add(ERROR, "same-series-twice", path, f"is also {other}")
            self.scans.setdefault(path.stem, path)
            self._scan(path, owners)
        self._orphans(owners)
        if not self.scans:
            self.add(ERROR, "no-scans", ".", f"searched {self.dataset_dir}/subset*/*.mhd")
        self._completeness()

    def _scan(self, path: Path, owners: dict[Path, Path]) -> None:
        try:
            header = read_header(path)
            for file in header.files[1:]:
                if file in owners:
                    self.add(ERROR, "shared-voxels", path, f"and {owners[file].name} both point to {file.name}")
                owners.setdefault(file, path)
        except LunaError as error:
            self.add(ERROR, "bad-scan", path, str(error))
            return
        geometry = self.geometries[path.stem] = header.geometry
        x, y, z = geometry.spacing
        within = (
            all(IN_PLANE_MM[0] <= value <= IN_PLANE_MM[1] for value in (x, y)) and ACROSS_MM[0] <= z <= ACROSS_MM[1]
        )
        if not within or not np.isclose(x, y, rtol=1e-3):
            self.add(WARNING, "odd-spacing", path, f"{x:g} × {y:g} mm in the slice, {z:g} mm across")
        if any(have < need for have, need in zip(geometry.shape, BLOCK, strict=True)):
            self.add(ERROR, "small-scan", path, f"{geometry.shape} voxels (z, y, x), the block is {BLOCK}")

    def _orphans(self, owners: dict[Path, Path]) -> None:
        # A header that could not be read has not told which voxel file is its own.
        for suffix in ("raw", "zraw"):
            for path in sorted(self.dataset_dir.glob(f"subset*/*.{suffix}")):
                if path.name.startswith("."):
                    self.add(WARNING, "stray-file", path, "is no voxel file, but is named like one")
                elif path not in owners and not path.with_suffix(".mhd").exists():
                    self.add(ERROR, "orphan-voxels", path, f"there is no {path.stem}.mhd")
                elif path not in owners and path.stem in self.geometries:
                    self.add(WARNING, "orphan-voxels", path, f"{path.stem}.mhd points to another file")

    def _completeness(self) -> None:
        counts = [0] * len(LUNA16_SUBSETS)
        for path in self.scans.values():
            if match := re.fullmatch(r"subset(\d)", path.parent.name):
                counts[int(match[1])] += 1
        parts = []
        for subset, (found, expected) in enumerate(zip(counts, LUNA16_SUBSETS, strict=True)):
            if found == expected:
                continue
            message = f"{found} of {expected} scans"
            if self.expect_complete:
                self.add(ERROR, "incomplete", f"subset{subset}", message)
            elif NEARLY_COMPLETE <= found < expected:
                self.add(WARNING, "incomplete", f"subset{subset}", message)
            elif found:
                parts.append(f"subset{subset}: {message}")
        absent = [f"subset{subset}" for subset, found in enumerate(counts) if not found]
        if absent:
            parts.append(f"none in {', '.join(absent)}")
        if parts and self.scans:
            total = f"{len(self.scans)} of {sum(LUNA16_SUBSETS)} scans"
            self.add(INFORMATION, "incomplete", ".", f"{total}; {'; '.join(parts)}")

    # --------------------------------------------------------------------------------------------------------- tables
    def tables(self) -> None:
        names = [name for name in CANDIDATE_FILES if (self.dataset_dir / name).is_file()]
        candidates = self._table((names or CANDIDATE_FILES)[0], [*COORDINATES, "class"])
        annotations = self._table("annotations.csv", [*COORDINATES, "diameter_mm"])
        if (self.dataset_dir / "annotations_excluded.csv").exists():
            # As published, it repeats findings and has four outside their CTs; both are harmless, so no more is asked.
            self._table("annotations_excluded.csv", COORDINATES)
        self._series_list()
        if candidates is not None:
            classes = candidates["class"].to_numpy()
            for row in np.flatnonzero(~np.isin(classes, [0, 1])):
                self.add(ERROR, "bad-class", _row(candidates, row), f"class is {classes[row]:g}")
            self._without_ct(candidates)
            listed = set(candidates["seriesuid"])
            for seriesuid, path in self.scans.items():
                if seriesuid not in listed:
                    self.add(WARNING, "no-candidates", path, f"{candidates.attrs['name']} has no row of it")
        if annotations is not None:
            diameters = annotations["diameter_mm"].to_numpy()
            for row in np.flatnonzero(diameters <= 0):
                self.add(ERROR, "bad-diameter", _row(annotations, row), f"diameter_mm is {diameters[row]:g}")
            self._without_ct(annotations)
        if candidates is not None and annotations is not None:
            self._nodules(candidates, annotations)
        found = f"{len(self.scans)} scans in {len({path.parent for path in self.scans.values()})} subsets"
        if candidates is not None:
            positive = int((candidates["class"] == 1).sum())
            found += f", {len(candidates)} candidates ({positive} of class 1) in {candidates.attrs['name']}"
        if annotations is not None:
            found += f", {len(annotations)} nodules in annotations.csv"
        self.add(INFORMATION, "overview", ".", found)

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame | None:
        try:
            table = read_table(self.dataset_dir / name, numeric=columns)
        except LunaError as error:
            self.add(ERROR, "bad-table", name, str(error))
            return None
        table.attrs["name"] = name
        if columns != COORDINATES:
            self._repeated(table)
            self._outside(table)
        return table

    def _repeated(self, table: pd.DataFrame) -> None:
        place = ["seriesuid", *COORDINATES]
        for _, rows in table[table.duplicated(place, keep=False)].groupby(place, sort=False):
            numbers = f"data rows {', '.join(str(index + 1) for index in rows.index)}"
            same = len(rows.drop_duplicates()) == 1
            values = ", ".join(f"{value:g}" for value in rows.iloc[:, -1])
            message = numbers if same else f"{numbers} say {table.columns[-1]} {values}"
            code, severity = ("duplicate-rows", WARNING) if same else ("contradictory-rows", ERROR)
            self.add(severity, code, f"{table.attrs['name']} {rows.iloc[0]['seriesuid']}", message)

    def _outside(self, table: pd.DataFrame) -> None:
        points = table[COORDINATES].to_numpy()
        for seriesuid, rows in table.groupby("seriesuid").indices.items():
            geometry = self.geometries.get(str(seriesuid))
            if geometry is None:
                continue
            rows = np.asarray(rows)
            indices = geometry.world_to_index(points[rows])
            wrong = ((indices < 0) | (indices >= geometry.shape)).any(axis=1)
            for row, index in zip(rows[wrong], indices[wrong], strict=True):
                world = ", ".join(f"{value:g}" for value in points[row])
                voxel = ", ".join(map(str, index))
                message = f"x,y,z ({world}) mm is voxel z,y,x ({voxel}) of {geometry.shape} of {seriesuid}"
                self.add(ERROR, "outside-volume", _row(table, row), message)

    def _without_ct(self, table: pd.DataFrame) -> None:
        name = table.attrs["name"]
        missing = table[~table["seriesuid"].isin(list(self.scans))]
        if name in CANDIDATE_FILES and len(missing) == len(table):
            self.add(ERROR, "no-ct", name, f"not one of its {len(table)} rows has its CT in subset*/")
            return
        severity = ERROR if self.expect_complete else INFORMATION
        for seriesuid, count in missing.groupby("seriesuid").size().items():
            self.add(severity, "no-ct", f"{name} {seriesuid}", f"{count} rows")

    def _series_list(self) -> None:
        path = self.dataset_dir / "seriesuids.csv"
        if not path.exists():
            return
        try:
            listed = set(pd.read_csv(path, header=None, dtype=str, usecols=[0])[0].dropna().str.strip()) - {"seriesuid"}
        except (OSError, ValueError) as error:
            self.add(ERROR, "bad-table", path, f"cannot be read ({' '.join(str(error).split())})")
            return
        whole = all((self.dataset_dir / f"subset{subset}").is_dir() for subset in range(len(LUNA16_SUBSETS)))
        severity = ERROR if whole or self.expect_complete else WARNING
        for seriesuid in sorted(listed - set(self.scans)):
            self.add(severity, "missing-scan", f"seriesuids.csv {seriesuid}", "no CT in subset*/")
        for seriesuid in sorted(set(self.scans) - listed):
            self.add(WARNING, "unlisted-scan", self.scans[seriesuid], "not in seriesuids.csv")

    def _nodules(self, candidates: pd.DataFrame, annotations: pd.DataFrame) -> None:
        centers = annotations[COORDINATES].to_numpy()
        diameters = annotations["diameter_mm"].to_numpy()
        points = candidates[COORDINATES].to_numpy()
        positive = candidates["class"].to_numpy() == 1
        rows_of_candidates = candidates.groupby("seriesuid").indices
        rows_of_nodules = annotations.groupby("seriesuid").indices
        nothing = np.empty(0, dtype=int)
        for seriesuid in self.scans:
            hits = rows_of_candidates.get(seriesuid, nothing)
            hits = hits[positive[hits]]
            nodules = rows_of_nodules.get(seriesuid, nothing)
            distances = np.linalg.norm(centers[nodules][:, None] - points[hits][None], axis=2)
            inside = distances <= diameters[nodules][:, None] / 2
            for row in nodules[~inside.any(axis=1)]:
                message = f"{diameters[row]:.1f} mm nodule of {seriesuid}"
                self.add(WARNING, "nodule-without-candidate", _row(annotations, row), message)
            for row in hits[~inside.any(axis=0)]:
                self.add(WARNING, "candidate-without-nodule", _row(candidates, row), f"of {seriesuid}")

    # --------------------------------------------------------------------------------------------------------- voxels
    def voxels(self, num_workers: int) -> None:
        paths = [self.scans[seriesuid] for seriesuid in self.geometries]
        same: dict[str, list[Path]] = defaultdict(list)
        for path, summary in zip(paths, summarize_scans(paths, num_workers, AIR_HU, LOWEST_HU), strict=True):
            if isinstance(summary, LunaError):
                self.add(ERROR, "bad-voxels", path, str(summary))
                continue
            same[summary.digest].append(path)
            self._hounsfield(path, summary)
        for copies in same.values():
            if len(copies) > 1:
                others = ", ".join(str(path.relative_to(self.dataset_dir)) for path in copies[1:])
                self.add(ERROR, "same-voxels", copies[0], f"is the same as {others}")

    def _hounsfield(self, path: Path, summary: VoxelSummary) -> None:
        found = f"{summary.lowest:g} to {summary.highest:g} HU, {summary.air_fraction:.1%} of the voxels air or lung"
        if summary.air_fraction < AIR_FRACTION:
            reason = (
                "without the rescale intercept, air is near 0" if summary.lowest >= 0 else "a chest CT has far more"
            )
            self.add(ERROR, "wrong-rescale", path, f"{found}; {reason}")
        elif summary.padding_fraction:
            message = (
                f"{summary.padding_fraction:.1%} of the voxels are below {LOWEST_HU} HU, down to {summary.lowest:g}"
            )
            self.add(INFORMATION, "padding", path, message)
        if not summary.whole_numbers:
            self.add(WARNING, "fractional-voxels", path, f"type {summary.dtype}")
        for zero, severity in ((True, ERROR), (False, WARNING)):
            slices = [z for z, value in summary.empty_slices if (value == 0) == zero]
            if slices:
                listed = ", ".join(map(str, slices[:5])) + (" …" if len(slices) > 5 else "")
                what = "0" if zero else "one value"
                self.add(severity, "empty-slices", path, f"{len(slices)} slices hold nothing but {what}: z = {listed}")


def _row(table: pd.DataFrame, row: int | np.integer) -> str:
    return f"{table.attrs['name']} data row {row + 1}"
