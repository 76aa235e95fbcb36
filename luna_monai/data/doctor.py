"""Examining a LUNA16 dataset folder for everything that would stop, or silently spoil, a training."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from luna_monai.data.candidates import CANDIDATE_FILES
from luna_monai.data.doctor_codes import ERROR, INFORMATION, WARNING, Finding
from luna_monai.data.tables import ANNOTATIONS, COORDINATES, EXCLUDED, read_table
from luna_monai.errors import LunaError
from luna_monai.scans import Scan, ScanHeader, read_header, read_scan, voxels_sha256

#: Scans in subset0 … subset9 of LUNA16; 888 together.
LUNA16_SUBSETS = (89, 89, 89, 89, 89, 89, 89, 89, 88, 88)
#: A subset with at least this number of scans counts as an incomplete copy of LUNA16's.
NEARLY_COMPLETE = 80
#: Spacings in LUNA16 are 0.46 to 0.98 mm in the slice and 0.45 to 2.5 mm across; these limits leave some margin.
IN_PLANE_MM = (0.3, 1.2)
ACROSS_MM = (0.2, 3.5)
#: The block that is cut around a candidate, z, y, x; a smaller scan has no place for it.
BLOCK = (32, 48, 48)
#: HU of air and lung, and the smallest part of a chest CT that they make up; in LUNA16 it is a third and more.
AIR_HU = (-1100, -600)
AIR_FRACTION = 0.02
#: Scanners write -1024 or far less outside the field of view; training clips both to -1000.
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
        self.headers: dict[str, ScanHeader] = {}

    def add(self, severity: str, code: str, subject: str | Path, message: str) -> None:
        if isinstance(subject, Path):
            subject = subject.relative_to(self.dataset_dir).as_posix()
        self.findings.append(Finding(severity, code, subject, message))

    def files(self) -> None:
        for path in sorted([*self.dataset_dir.glob("*.mhd"), *self.dataset_dir.glob("subset*/*/*.mhd")]):
            self.add(WARNING, "misplaced-scan", path, f"lies in {path.parent}")
        owners: dict[Path, Path] = {}
        for path in sorted(self.dataset_dir.glob("subset*/*.mhd")):
            if path.name.startswith("."):
                self.add(WARNING, "stray-file", path, "is not a CT, but is named like one")
                continue
            if re.fullmatch(r"subset\d", path.parent.name) is None:
                self.add(ERROR, "misplaced-scan", path, f"{path.parent.name} is none of LUNA16's subset0 … subset9")
            first = self.scans.setdefault(path.stem, path)
            if first != path:
                self.add(ERROR, "same-series-twice", path, f"is also {first.relative_to(self.dataset_dir)}")
            self._scan(path, owners)
        for path in sorted(self.dataset_dir.glob("subset*/*.*raw")):
            if path.name.startswith("."):
                self.add(WARNING, "stray-file", path, "is not a voxel file, but is named like one")
            elif path not in owners and not path.with_suffix(".mhd").exists():
                self.add(ERROR, "orphan-voxels", path, f"there is no {path.stem}.mhd")
            elif path not in owners and path.stem in self.headers:
                self.add(WARNING, "orphan-voxels", path, f"{path.stem}.mhd names another file")
        if not self.scans:
            self.add(ERROR, "no-scans", ".", f"searched {self.dataset_dir}/subset*/*.mhd")
        self._completeness()

    def _scan(self, path: Path, owners: dict[Path, Path]) -> None:
        try:
            header = read_header(path)
        except LunaError as error:
            self.add(ERROR, "bad-scan", path, str(error))
            return
        for file in header.files[1:]:
            if file in owners:
                self.add(ERROR, "shared-voxels", path, f"and {owners[file].name} both name {file.name}")
            owners.setdefault(file, path)
        self.headers[path.stem] = header
        x, y, z = header.geometry.spacing
        usual = IN_PLANE_MM[0] <= min(x, y) and max(x, y) <= IN_PLANE_MM[1] and ACROSS_MM[0] <= z <= ACROSS_MM[1]
        if not usual or not np.isclose(x, y, rtol=1e-3):
            self.add(WARNING, "odd-spacing", path, f"{x:g} × {y:g} mm in the slice, {z:g} mm across")
        if np.any(np.less(header.geometry.shape, BLOCK)):
            self.add(ERROR, "small-scan", path, f"{header.geometry.shape} voxels (z, y, x), the block is {BLOCK}")

    def _completeness(self) -> None:
        counts = [0] * len(LUNA16_SUBSETS)
        for path in self.scans.values():
            if match := re.fullmatch(r"subset(\d)", path.parent.name):
                counts[int(match[1])] += 1
        parts = []
        for subset, (found, expected) in enumerate(zip(counts, LUNA16_SUBSETS, strict=True)):
            message = f"{found} of {expected} scans"
            if self.expect_complete and found != expected:
                self.add(ERROR, "incomplete", f"subset{subset}", message)
            elif NEARLY_COMPLETE <= found < expected:
                self.add(WARNING, "incomplete", f"subset{subset}", message)
            elif found not in (0, expected):
                parts.append(f"subset{subset}: {message}")
        absent = [f"subset{subset}" for subset, found in enumerate(counts) if not found]
        parts += [f"none in {', '.join(absent)}"] if absent else []
        if parts and self.scans:
            total = f"{len(self.scans)} of {sum(LUNA16_SUBSETS)} scans"
            self.add(INFORMATION, "incomplete", ".", f"{total}; {'; '.join(parts)}")

    def tables(self) -> None:
        name = next((name for name in CANDIDATE_FILES if (self.dataset_dir / name).is_file()), CANDIDATE_FILES[0])
        candidates = self._table(name, [*COORDINATES, "class"])
        annotations = self._table(ANNOTATIONS, [*COORDINATES, "diameter_mm"])
        if (self.dataset_dir / EXCLUDED).exists():
            # As published, it repeats findings and has four outside their CTs; both are harmless.
            self._table(EXCLUDED, COORDINATES)
        else:
            self.add(WARNING, "no-excluded", EXCLUDED, "no such file")
        self._series_list()
        found = f"{len(self.scans)} scans in {len({path.parent for path in self.scans.values()})} subsets"
        if candidates is not None:
            classes = candidates["class"]
            found += f", {len(candidates)} candidates ({int((classes == 1).sum())} of class 1) in {name}"
            for row in candidates.index[~classes.isin([0, 1])]:
                self.add(ERROR, "bad-class", f"{name} data row {row + 1}", f"class is {classes[row]:g}")
            self._without_ct(candidates, name)
            for seriesuid in sorted(self.scans.keys() - set(candidates["seriesuid"])):
                self.add(WARNING, "no-candidates", self.scans[seriesuid], f"{name} has no row of it")
        if annotations is not None:
            found += f", {len(annotations)} nodules in {ANNOTATIONS}"
            diameters = annotations["diameter_mm"]
            for row in annotations.index[diameters <= 0]:
                self.add(ERROR, "bad-diameter", f"{ANNOTATIONS} data row {row + 1}", f"is {diameters[row]:g} mm")
            self._without_ct(annotations, ANNOTATIONS)
            if candidates is not None:
                self._nodules(candidates, name, annotations)
        self.add(INFORMATION, "overview", ".", found)

    def _table(self, name: str, columns: list[str]) -> pd.DataFrame | None:
        try:
            table = read_table(self.dataset_dir / name, numeric=columns)
        except LunaError as error:
            self.add(ERROR, "bad-table", name, str(error))
            return None
        if columns == COORDINATES:
            return table
        place = ["seriesuid", *COORDINATES]
        for (seriesuid, *_), rows in table[table.duplicated(place, keep=False)].groupby(place, sort=False):
            numbers = f"data rows {', '.join(str(index + 1) for index in rows.index)}"
            values = rows[columns[-1]]
            if values.nunique() == 1:
                self.add(WARNING, "duplicate-rows", f"{name} {seriesuid}", numbers)
            else:
                message = f"{numbers} have {columns[-1]} {', '.join(f'{value:g}' for value in values)}"
                self.add(ERROR, "contradictory-rows", f"{name} {seriesuid}", message)
        points = table[COORDINATES].to_numpy()
        for seriesuid, places in table.groupby("seriesuid").indices.items():
            if seriesuid in self.headers:
                geometry = self.headers[str(seriesuid)].geometry
                indices = geometry.world_to_index(points[places])
                wrong = ((indices < 0) | (indices >= geometry.shape)).any(axis=1)
                for row, index in zip(np.asarray(places)[wrong], indices[wrong], strict=True):
                    world, voxel = (", ".join(f"{value:g}" for value in values) for values in (points[row], index))
                    message = f"x,y,z ({world}) mm is voxel z,y,x ({voxel}) of {geometry.shape} of {seriesuid}"
                    self.add(ERROR, "outside-volume", f"{name} data row {row + 1}", message)
        return table

    def _without_ct(self, table: pd.DataFrame, name: str) -> None:
        missing = table[~table["seriesuid"].isin(list(self.scans))]
        if name != ANNOTATIONS and len(missing) == len(table):
            self.add(ERROR, "no-ct", name, f"none of its {len(table)} rows has its CT in subset*/")
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
        complete = all((self.dataset_dir / f"subset{subset}").is_dir() for subset in range(len(LUNA16_SUBSETS)))
        severity = ERROR if complete or self.expect_complete else WARNING
        for seriesuid in sorted(listed - set(self.scans)):
            self.add(severity, "missing-scan", f"seriesuids.csv {seriesuid}", "no CT in subset*/")
        for seriesuid in sorted(set(self.scans) - listed):
            self.add(WARNING, "unlisted-scan", self.scans[seriesuid], "not in seriesuids.csv")

    def _nodules(self, candidates: pd.DataFrame, name: str, annotations: pd.DataFrame) -> None:
        positive = candidates[candidates["class"] == 1]
        for seriesuid in self.scans:
            hits, nodules = (table[table["seriesuid"] == seriesuid] for table in (positive, annotations))
            offsets = nodules[COORDINATES].to_numpy()[:, None] - hits[COORDINATES].to_numpy()[None]
            inside = np.linalg.norm(offsets, axis=2) <= nodules["diameter_mm"].to_numpy()[:, None] / 2
            for row in nodules.index[~inside.any(axis=1)]:
                message = f"{nodules.loc[row, 'diameter_mm']:.1f} mm nodule of {seriesuid}"
                self.add(WARNING, "nodule-without-candidate", f"{ANNOTATIONS} data row {row + 1}", message)
            for row in hits.index[~inside.any(axis=0)]:
                self.add(WARNING, "candidate-without-nodule", f"{name} data row {row + 1}", f"of {seriesuid}")

    def voxels(self, num_workers: int) -> None:
        same: dict[str, list[Path]] = defaultdict(list)
        with ThreadPoolExecutor(max(1, num_workers)) as pool:  # decompression and NumPy let other threads run
            read = pool.map(_read_deep, self.headers.values())
            results = tqdm(read, total=len(self.headers), desc="reading voxels", unit="scan", disable=None)
            for header, (digest, findings) in zip(self.headers.values(), results, strict=True):
                same[digest].append(header.path)
                for severity, code, message in findings:
                    self.add(severity, code, header.path, message)
        for digest, copies in same.items():
            if digest and len(copies) > 1:
                others = ", ".join(path.relative_to(self.dataset_dir).as_posix() for path in copies[1:])
                self.add(ERROR, "same-voxels", copies[0], f"is the same as {others}")


def _read_deep(header: ScanHeader) -> tuple[str, list[tuple[str, str, str]]]:
    """Read a scan as training does; return a checksum of its HU, and severity, code and message of findings."""
    try:
        scan = read_scan(header)
    except LunaError as error:
        return "", [(ERROR, "bad-voxels", str(error))]
    return voxels_sha256(scan.voxels), list(_hounsfield(scan))


def _hounsfield(scan: Scan) -> Iterable[tuple[str, str, str]]:
    voxels = scan.voxels
    lowest, highest, air, padding, fractional = np.inf, -np.inf, 0, 0, False
    empty: dict[bool, list[int]] = {True: [], False: []}
    for z, layer in enumerate(voxels):  # slice by slice, so that what is derived from the voxels stays small
        low, high = float(layer.min()), float(layer.max())
        lowest, highest = min(lowest, low), max(highest, high)
        if low == high:
            empty[low == 0].append(z)
        air += int(np.count_nonzero((layer >= AIR_HU[0]) & (layer <= AIR_HU[1])))
        padding += int(np.count_nonzero(layer < LOWEST_HU))
        fractional = fractional or (layer.dtype.kind == "f" and bool((np.trunc(layer) != layer).any()))
    if air / voxels.size < AIR_FRACTION:
        reason = "without the rescale intercept, air is near 0" if lowest >= 0 else "a chest CT has far more"
        found = f"{lowest:g} to {highest:g} HU, {air / voxels.size:.1%} of the voxels air or lung"
        yield ERROR, "wrong-rescale", f"{found}; {reason}"
    elif padding:
        found = f"{padding / voxels.size:.1%} of the voxels are below {LOWEST_HU} HU, down to {lowest:g}"
        yield INFORMATION, "padding", found
    if fractional or scan.warnings:
        yield WARNING, "fractional-voxels", "; ".join([f"type {scan.header.dtype}", *scan.warnings])
    for zero, slices in empty.items():
        if slices:
            listed = ", ".join(map(str, slices[:5])) + (" …" if len(slices) > 5 else "")
            what = "0" if zero else "one value"
            severity = ERROR if zero else WARNING
            yield severity, "empty-slices", f"{len(slices)} slices hold nothing but {what}: z = {listed}"
