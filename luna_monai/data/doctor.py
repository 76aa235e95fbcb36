"""Checks of a LUNA16 dataset folder for errors that would stop a training or corrupt its results."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from luna_monai.data.candidates import ALLOWED, CANDIDATE_FILES, outside_of, subset_of
from luna_monai.data.tables import ANNOTATIONS, COORDINATES, EXCLUDED, WITHOUT_EXCLUDED, read_finding_table
from luna_monai.errors import LunaError
from luna_monai.scans import ScanHeader, read_header, read_scan
from luna_monai.scans.sources import subset_files, walk
from luna_monai.tables import read_table

ERROR, WARNING, INFORMATION = "error", "warning", "information"
#: HU range of air and lung, and the smallest fraction of a chest CT in this range. In LUNA16 it is at least a third.
AIR_HU = (-1100, -600)
AIR_FRACTION = 0.02


class Finding(NamedTuple):
    """One result of the checks.

    Attributes:
        severity: ``"error"`` (training would fail or use wrong data), ``"warning"`` (should be checked) or
            ``"information"``.
        kind: what is wrong and what to do, the same text for all findings of a kind.
        subject: the location, relative to the dataset folder, and what was found there.
    """

    severity: str
    kind: str
    subject: str


def examine_dataset(dataset_dir: str | Path, *, deep: bool = False, num_workers: int = 1) -> list[Finding]:
    """Check a LUNA16 dataset folder. A part of LUNA16 is a valid dataset.

    Args:
        dataset_dir: LUNA16 dataset folder.
        deep: whether to read all voxels too, which takes about a second per scan.
        num_workers: number of threads that read voxels; each holds one scan in memory.

    Returns:
        The findings, errors first.

    Raises:
        LunaError: when the folder does not exist.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise LunaError(f"{dataset_dir}: no such folder; pass the folder of subset0 … subset9 and the tables")
    headers: dict[str, ScanHeader] = {}
    findings = [*_files(dataset_dir, headers), *_tables(dataset_dir, headers)]
    if deep:
        with ThreadPoolExecutor(max(1, num_workers)) as pool:  # decompression and NumPy release the GIL
            read = pool.map(_voxels, headers.values())
            for found in tqdm(read, "reading voxels", len(headers), unit="scan", disable=None):
                findings += found
    return sorted(findings, key=lambda finding: (ERROR, WARNING, INFORMATION).index(finding.severity))


def _files(dataset_dir: Path, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    """Read the header of each CT that training finds, and find files in the wrong place."""
    cts = subset_files(dataset_dir.glob("subset*"))
    for uid, path in cts:
        if uid in headers:
            found = f"{path.relative_to(dataset_dir)} and {headers[uid].path.relative_to(dataset_dir)}"
            yield Finding(ERROR, "a series with two files: remove one of the copies", found)
            continue
        try:
            subset_of(path)  # checks the name of the folder
            headers[uid] = read_header(path)
            if np.any(np.sort(headers[uid].geometry.shape) < (32, 48, 48)):
                raise LunaError(f"{path}: smaller than the crop of 32 x 48 x 48 voxels")
        except LunaError as error:
            yield Finding(ERROR, "a CT that cannot be used", str(error))
    known = {path.stem for _, path in cts}
    others = (path for _, files in walk(dataset_dir) for path in files if path.stem not in known)
    for path in filter(lambda path: not path.name.startswith("."), others):
        name = path.relative_to(dataset_dir).as_posix()
        if path.suffix in (".raw", ".zraw") and not path.with_suffix(".mhd").exists():
            yield Finding(ERROR, "a voxel file without a header: copy its .mhd again, or remove it", name)
        elif path.suffix == ".mhd" and not path.parent.name.startswith("seg-lungs"):
            yield Finding(ERROR, "a CT outside subset0 … subset9: move it into one of them", name)
    if not headers:
        yield Finding(ERROR, "no CT was found: unpack LUNA16's subset*.zip here", f"{dataset_dir}/subset*/*.mhd")


def _tables(dataset_dir: Path, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    """Read the tables as training does, and compare them with the scans."""
    counts = Counter(header.path.parent.name for header in headers.values())
    found = [", ".join(f"{count} CTs in {subset}" for subset, count in sorted(counts.items()))]
    candidates_file = next((name for name in CANDIDATE_FILES if (dataset_dir / name).is_file()), CANDIDATE_FILES[0])
    for name, column in ((candidates_file, ["class"]), (ANNOTATIONS, ["diameter_mm"]), (EXCLUDED, [])):
        if name == EXCLUDED and not (dataset_dir / name).exists():
            yield Finding(WARNING, "a table is missing", WITHOUT_EXCLUDED)
            continue
        try:
            path, columns = dataset_dir / name, [*COORDINATES, *column]
            table = read_table(path, columns, allowed=ALLOWED) if column else read_finding_table(path)
        except LunaError as error:
            yield Finding(ERROR, "a table that cannot be read: correct the line, or copy it again", str(error))
            continue
        found.append(f"{len(table)} rows in {name}")
        if column:  # the published excluded findings have duplicates, and four are outside their CT; both are harmless
            yield from _rows(name, table, headers)
    kind = "LUNA16 has 89 CTs in each of subset0 … subset7, 88 in subset8 and subset9"
    yield Finding(INFORMATION, kind, "; ".join(found))


def _rows(name: str, table: pd.DataFrame, headers: dict[str, ScanHeader]) -> Iterator[Finding]:
    here = table[table["seriesuid"].isin(list(headers))]
    if len(here) < len(table) or (table.empty and name in CANDIDATE_FILES):
        found = f"{name}: {len(table) - len(here)} of {len(table)} rows"
        yield Finding(INFORMATION if len(here) else ERROR, "rows of series without a readable CT", found)
    kind = "a position outside its CT: correct the row" + ", or set outside_volume=drop" * (name in CANDIDATE_FILES)
    yield from (Finding(ERROR, kind, f"{name}: {text}") for text in outside_of(here, headers).values())
    for row in table[table.duplicated(["seriesuid", *COORDINATES])].itertuples():
        found = f"{name}: {row.seriesuid} at ({row.coordX:g}, {row.coordY:g}, {row.coordZ:g}) mm"
        yield Finding(WARNING, "several rows with the same position: remove all but one", found)


def _voxels(header: ScanHeader) -> list[Finding]:
    """Read a scan as training does, and check its HU."""
    try:
        scan = read_scan(header)
    except LunaError as error:
        return [Finding(ERROR, "a CT that cannot be used", str(error))]
    findings = [Finding(WARNING, "an unusual CT", f"{scan.seriesuid}: {warning}") for warning in scan.warnings]
    air = np.mean([np.mean((layer >= AIR_HU[0]) & (layer <= AIR_HU[1])) for layer in scan.voxels])
    if air < AIR_FRACTION:
        kind = "voxels that are not in HU: convert the CT again, with slope and intercept"
        findings.append(Finding(ERROR, kind, f"{scan.seriesuid}: {air:.1%} of the voxels are air or lung"))
    if empty := [z for z, layer in enumerate(scan.voxels) if layer.min() == layer.max()]:
        kind = "slices with a single value, as after an interrupted copy: copy the CT again"
        found = f"{scan.seriesuid}: {len(empty)} slices, the first is z = {empty[0]}"
        findings.append(Finding(ERROR if not scan.voxels[empty].all() else WARNING, kind, found))
    return findings
