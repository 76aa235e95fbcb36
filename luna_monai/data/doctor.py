"""Examining a LUNA16 dataset folder for everything that would stop, or silently spoil, a training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from luna_monai.data.candidates import ALLOWED, CANDIDATE_FILES, outside_of
from luna_monai.data.tables import ANNOTATIONS, COORDINATES, EXCLUDED, WITHOUT_EXCLUDED
from luna_monai.errors import LunaError
from luna_monai.scans import Scan, ScanHeader, read_header, read_scan, voxels_sha256
from luna_monai.tables import read_table

ERROR, WARNING, INFORMATION = "error", "warning", "information"
#: Spacings in LUNA16 are 0.46 to 0.98 mm in the slice and 0.45 to 2.5 mm across; these limits leave some margin.
IN_PLANE_MM = (0.3, 1.2)
ACROSS_MM = (0.2, 3.5)
#: The block that is cut around a candidate, z, y, x; a smaller scan has no place for it.
BLOCK = (32, 48, 48)
#: HU of air and lung, and the smallest part of a chest CT that they make up; in LUNA16 it is a third and more.
AIR_HU = (-1100, -600)
AIR_FRACTION = 0.02


class Finding(NamedTuple):
    """One thing that was noticed.

    Attributes:
        severity: ``"error"`` (training would fail or learn something wrong), ``"warning"`` (look at it) or
            ``"information"``.
        kind: what is wrong and what to do about it, the same text for all findings of a kind.
        subject: where, relative to the dataset folder, and what was found there.
    """

    severity: str
    kind: str
    subject: str


def examine_dataset(dataset_dir: str | Path, *, deep: bool = False, num_workers: int = 1) -> list[Finding]:
    """Look for everything that is wrong with a LUNA16 dataset folder. A part of LUNA16 is a legitimate dataset.

    Args:
        dataset_dir: LUNA16 dataset folder.
        deep: whether to read all voxels too, which takes about a second a scan.
        num_workers: threads that read voxels; each holds one scan.

    Returns:
        What was found, errors first.

    Raises:
        LunaError: when there is no such folder.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise LunaError(f"{dataset_dir}: no such folder; give the one that holds subset0 … subset9 and the tables")
    headers: dict[str, ScanHeader] = {}
    findings = [*_files(dataset_dir, headers), *_tables(dataset_dir, headers)]
    if deep:
        findings += _voxels(headers, num_workers)
    order = (ERROR, WARNING, INFORMATION)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _files(dataset_dir: Path, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    """Read each header once, and find what is in the wrong place."""
    named: set[Path] = set()
    present = [path for path in sorted(dataset_dir.rglob("*")) if path.suffix in (".mhd", ".raw", ".zraw")]
    present = [path for path in present if not path.name.startswith(".")]
    for path in (path for path in present if path.suffix == ".mhd"):
        name = path.relative_to(dataset_dir).as_posix()
        if not re.fullmatch(r"subset\d/[^/]+", name):
            yield Finding(ERROR, "a CT outside subset0 … subset9: move it there", name)
            continue
        try:
            header = read_header(path)
        except LunaError as error:
            yield Finding(ERROR, "a CT that cannot be read", str(error))
            continue
        if path.stem in headers:
            other = headers[path.stem].path.relative_to(dataset_dir)
            yield Finding(ERROR, "a series in two subsets: remove one of the copies", f"{name} and {other}")
        if named & set(header.files):
            yield Finding(ERROR, "two headers name one voxel file: copy both scans again", name)
        headers[path.stem] = header
        named.update(header.files)
        x, y, z = header.geometry.spacing
        usual = IN_PLANE_MM[0] <= min(x, y) and max(x, y) <= IN_PLANE_MM[1] and ACROSS_MM[0] <= z <= ACROSS_MM[1]
        if not usual or not np.isclose(x, y, rtol=1e-3):
            found = f"{name}: {x:g} × {y:g} × {z:g} mm"
            yield Finding(WARNING, "voxels of an unusual size: compare with the original scan", found)
        if np.any(np.less(header.geometry.shape, BLOCK)):
            found = f"{name}: {header.geometry.shape} voxels (z, y, x), the crop has {BLOCK}"
            yield Finding(ERROR, "a CT smaller than the crop around a candidate: remove it", found)
        yield from (Finding(WARNING, "an unusual CT", f"{name}: {warning}") for warning in header.warnings)
    for path in present:
        if path not in named and not path.with_suffix(".mhd").exists():
            name = path.relative_to(dataset_dir).as_posix()
            yield Finding(ERROR, "a voxel file without a header: copy its .mhd again, or remove it", name)
    if not headers:
        yield Finding(ERROR, "no CT was found: unpack LUNA16's subset*.zip here", f"{dataset_dir}/subset*/*.mhd")


def _tables(dataset_dir: Path, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    """Read the tables as training does, and compare them with the scans and with each other."""
    counts = Counter(header.path.parent.name for header in headers.values())
    found = [", ".join(f"{count} CTs in {subset}" for subset, count in sorted(counts.items()))]
    candidates_file = next((name for name in CANDIDATE_FILES if (dataset_dir / name).is_file()), CANDIDATE_FILES[0])
    columns = {candidates_file: ["class"], ANNOTATIONS: ["diameter_mm"]}
    if (dataset_dir / EXCLUDED).exists():
        columns[EXCLUDED] = []
    else:
        yield Finding(WARNING, "a table is missing", WITHOUT_EXCLUDED)
    tables = {}
    for name, more in columns.items():
        try:
            table = read_table(dataset_dir / name, [*COORDINATES, *more], allowed=ALLOWED)
        except LunaError as error:
            yield Finding(ERROR, "a table that cannot be read: correct the line, or copy it again", str(error))
            continue
        found.append(f"{len(table)} rows in {name}")
        if more:  # as published, the excluded findings repeat some and have four outside their CTs, without harm
            tables[more[0]] = table
            yield from _rows(name, table, headers)
    kind = "LUNA16 has 89 CTs in each of subset0 … subset7, 88 in subset8 and subset9"
    yield Finding(INFORMATION, kind, "; ".join(found))
    path = dataset_dir / "seriesuids.csv"
    if path.exists():
        listed = set(path.read_text(encoding="utf-8", errors="replace").split()) - {"seriesuid"}
        for seriesuid in sorted(listed - headers.keys()):
            yield Finding(WARNING, "series of seriesuids.csv without a CT: add the CTs", seriesuid)
    if len(tables) == 2:
        yield from _nodules(tables["class"], tables["diameter_mm"], headers)


def _rows(name: str, table: pd.DataFrame, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    absent = table.loc[~table["seriesuid"].isin(list(headers)), "seriesuid"]
    if len(absent):
        found = f"{name}: {len(absent)} of {len(table)} rows, of {absent.nunique()} series"
        severity = ERROR if len(absent) == len(table) else INFORMATION
        yield Finding(severity, "rows of series without a CT, which training omits", found)
    kind = "a position outside its CT: correct the row, or set outside_volume=drop"
    yield from (Finding(ERROR, kind, f"{name}: {text}") for text in outside_of(table, headers).values())
    place = ["seriesuid", *COORDINATES]
    for _, rows in table[table.duplicated(place, keep=False)].groupby(place, sort=False):
        values, row = rows.iloc[:, -1], rows.iloc[0]
        position = ", ".join(f"{row[axis]:g}" for axis in COORDINATES)
        found = f"{name}: {len(rows)} rows of {row['seriesuid']} at ({position}) mm"
        if values.nunique() == 1:
            yield Finding(WARNING, "rows that are the same: remove all but one", found)
        else:
            found += f" with {values.name} {', '.join(f'{value:g}' for value in values)}"
            yield Finding(ERROR, "rows of one place that contradict each other: remove all but one", found)


def _nodules(candidates: pd.DataFrame, annotations: pd.DataFrame, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    for seriesuid in sorted(headers.keys() - set(candidates["seriesuid"])):
        yield Finding(WARNING, "a CT without candidates is never used: check the candidate table", seriesuid)
    positive = candidates[candidates["class"] == 1]
    for seriesuid in headers:
        hits, nodules = (table[table["seriesuid"] == seriesuid] for table in (positive, annotations))
        offsets = nodules[COORDINATES].to_numpy()[:, None] - hits[COORDINATES].to_numpy()[None]
        inside = np.linalg.norm(offsets, axis=2) <= nodules["diameter_mm"].to_numpy()[:, None] / 2
        for diameter in nodules.loc[~inside.any(axis=1), "diameter_mm"]:
            kind = "a nodule without a candidate of class 1 within its radius cannot be learned or detected"
            yield Finding(WARNING, kind, f"{seriesuid}: {diameter:.1f} mm")
        for row in hits[~inside.any(axis=0)].itertuples():
            kind = f"a candidate of class 1 outside every nodule of {ANNOTATIONS}: check the versions of the tables"
            yield Finding(WARNING, kind, f"{seriesuid} at ({row.coordX:g}, {row.coordY:g}, {row.coordZ:g}) mm")


def _voxels(headers: dict[str, ScanHeader], num_workers: int) -> Iterator[Finding]:
    """Read each scan as training does, and look at its HU."""
    same: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, num_workers)) as pool:  # decompression and NumPy let other threads run
        read = pool.map(_examine_voxels, headers.values())
        for seriesuid, (digest, findings) in zip(
            headers, tqdm(read, total=len(headers), desc="reading voxels", unit="scan", disable=None), strict=True
        ):
            yield from findings
            if digest and same.setdefault(digest, seriesuid) != seriesuid:
                kind = "the same voxels under two names, which may be in training and validation: remove one"
                yield Finding(ERROR, kind, f"{seriesuid} and {same[digest]}")


def _examine_voxels(header: ScanHeader) -> tuple[str, list[Finding]]:
    try:
        scan = read_scan(header)
    except LunaError as error:
        return "", [Finding(ERROR, "a CT that cannot be read", str(error))]
    new = scan.warnings[len(header.warnings) :]
    findings = [Finding(WARNING, "an unusual CT", f"{scan.seriesuid}: {warning}") for warning in new]
    return voxels_sha256(scan.voxels), [*findings, *_hounsfield(scan)]


def _hounsfield(scan: Scan) -> Iterator[Finding]:
    layers = [(float(layer.min()), float(layer.max()), _air_of(layer)) for layer in scan.voxels]
    lowest, highest, air = (np.array(values) for values in zip(*layers, strict=True))
    share = air.sum() / scan.voxels.size
    if share < AIR_FRACTION:
        found = f"{scan.seriesuid}: {lowest.min():g} to {highest.max():g} HU, {share:.1%} of the voxels air or lung"
        yield Finding(ERROR, "voxels that are not in HU: convert the CT again, with slope and intercept", found)
    if scan.voxels.dtype.kind == "f" and any((np.trunc(layer) != layer).any() for layer in scan.voxels):
        yield Finding(WARNING, "voxels that are not integers; the cache rounds them", scan.seriesuid)
    for value in np.unique(lowest[lowest == highest]):
        slices = np.flatnonzero((lowest == highest) & (lowest == value))
        found = f"{scan.seriesuid}: {len(slices)} slices of {value:g} HU, the first is z = {slices[0]}"
        kind = "slices that hold a single value, as after an interrupted copy: copy the CT again"
        yield Finding(ERROR if value == 0 else WARNING, kind, found)


def _air_of(layer: np.ndarray) -> int:
    return int(np.count_nonzero((layer >= AIR_HU[0]) & (layer <= AIR_HU[1])))
