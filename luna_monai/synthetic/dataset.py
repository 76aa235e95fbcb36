"""Writing synthetic scans as a LUNA16 dataset folder."""

import dataclasses
import logging
import math
import multiprocessing
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.synthetic.scan import ScanOptions, SyntheticScan, generate_scan

logger = logging.getLogger(__name__)

_Written: TypeAlias = tuple[str, SyntheticScan]
# Smallest value, largest value and unit of each argument. The cache of a million candidates would take 150 GB.
_RANGES: dict[str, tuple[float, float, str]] = {
    "scans": (1, math.inf, ""),
    "whole_thoraxes": (0, math.inf, ""),
    "candidates_per_scan": (1, 100_000, ""),
    "nodules_per_scan": (0, 100, ""),
    "seed": (0, math.inf, ""),
    "workers": (0, math.inf, ""),
    "in_plane": (64, 512, " voxels"),
    "slices": (40, 1000, " voxels"),
}
_MEAN_SLICES = 230
# Factor for scans of a whole thorax, which has space for more candidates than a part of a lung.
_WHOLE_THORAX_CANDIDATES = 3
_LOG_INTERVAL_SECONDS = 10.0


def write_dataset(
    path: str | Path,
    *,
    scans: int,
    candidates_per_scan: int = 620,
    nodules_per_scan: float = 1.34,
    seed: int = 0,
    workers: int = 0,
    in_plane: int = 512,
    slices: int | None = None,
    whole_thoraxes: int = 0,
) -> Path:
    """Write synthetic chest CTs as a LUNA16 dataset folder.

    The folder contains ``subset0`` … with ``UID.mhd`` and ``UID.raw``, and ``annotations.csv``,
    ``annotations_excluded.csv``, ``candidates.csv`` and ``seriesuids.csv``. Scans are distributed over two to ten
    subsets, with at least two scans per subset if there are enough. Files get their names when they are complete, and
    the tables are written last, so a folder with tables is complete.

    Voxel spacing, position and direction are distributed as in LUNA16. With fewer than 400 voxels in-plane, a scan is
    a targeted reconstruction: it has the same spacing, but shows only a part of one lung and its surroundings.

    Args:
        path: the folder to write; created if it is missing. An existing folder must be empty.
        scans: number of scans.
        candidates_per_scan: number of rows in ``candidates.csv`` per scan; LUNA16 has about 620.
        nodules_per_scan: mean number of nodules that are painted in a scan. Hidden and faint ones are excluded
            findings, the others are annotated; LUNA16 has 1.34 annotated ones (1,186 in 888 scans).
        seed: random seed. The same arguments produce the same bytes for any number of workers; processors of another
            type round differently.
        workers: number of processes that generate scans; 0 works in this process.
        in_plane: number of voxels along x and along y, 64 to 512.
        slices: number of voxels along z, 40 to 1000. None covers the whole thorax.
        whole_thoraxes: number of scans that show the whole thorax. These are the last scans; they ignore ``in_plane``
            and ``slices``, and have three times as many candidates.

    Returns:
        The folder.

    Raises:
        LunaError: when an argument is out of range, the folder is not empty, or it cannot be written.
    """
    given = {name: value for name, value in locals().items() if name in _RANGES}
    for name, (least, most, unit) in _RANGES.items():
        if given[name] is not None and not least <= given[name] <= most:
            limits = f"at least {least}" if math.isinf(most) else f"between {least} and {most}{unit}"
            raise LunaError(f"{name} must be {limits}, found {given[name]}")
    if whole_thoraxes > scans:
        raise LunaError(f"whole_thoraxes must be at most the number of scans, {scans}, found {whole_thoraxes}")
    path = Path(path)
    part = ScanOptions(in_plane, slices, candidates_per_scan, nodules_per_scan)
    whole = ScanOptions(512, None, _WHOLE_THORAX_CANDIDATES * candidates_per_scan, nodules_per_scan)
    counts = {part: scans - whole_thoraxes, whole: whole_thoraxes}
    _prepare_folder(path, sum(n * 2 * it.in_plane**2 * (it.slices or _MEAN_SLICES) for it, n in counts.items()))
    options = [option for option, count in counts.items() for _ in range(count)]
    subsets = min(10, max(2, scans // 2))  # at least one for validation and one for training
    folders = [path / f"subset{number % subsets}" for number in range(scans)]
    seeds = np.random.SeedSequence(seed).spawn(scans)
    began = reported = time.monotonic()
    written = []
    try:
        for folder in folders[:subsets]:
            folder.mkdir(exist_ok=True)
        for scan in _results(options, folders, seeds, workers):
            written.append(scan)
            now = time.monotonic()
            if len(written) == scans or now - reported >= _LOG_INTERVAL_SECONDS:
                logger.info("synthetic scans: %d of %d written, %.0f s", len(written), scans, now - began)
                reported = now
        _write_tables(path, written)
    except OSError as error:
        raise LunaError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error
    return path


def _prepare_folder(path: Path, size: int) -> None:
    """Create the folder, and check that it is empty and that its disk has ``size`` bytes free."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise LunaError(f"{path}: cannot be used as a folder to write to ({error.strerror})") from error
    if found:
        raise LunaError(f"{path}: the folder is not empty (it holds {found[0]!r}); name a new one, or empty it first")
    free = shutil.disk_usage(path).free
    if size > free:
        needed = f"{path}: about {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free"
        raise LunaError(f"{needed}; ask for fewer or smaller scans, or another disk")


def _results(options: list[ScanOptions], folders: list[Path], seeds: list[Any], workers: int) -> Iterator[_Written]:
    """Write all scans, and yield the series UID and the scan without voxels, in order."""
    if workers == 0:
        yield from map(_write_scan, options, folders, seeds)
        return
    # Spawn, because forking a process with the threads of torch can hang. The parent process handles Ctrl-C.
    executor = ProcessPoolExecutor(
        min(workers, len(folders)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from executor.map(_write_scan, options, folders, seeds)
    except BrokenProcessPool as error:
        reason = "most often because memory ran out (a scan of 512 x 512 x 600 voxels needs 3 GB)"
        raise LunaError(f"a worker process ended unexpectedly, {reason}; use fewer workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _write_scan(options: ScanOptions, folder: Path, seed: np.random.SeedSequence) -> _Written:
    """Generate one scan and write its two files."""
    uid_seed, scan_seed = seed.spawn(2)
    # A UUID with the root 2.25 is a valid DICOM UID that needs no registration (DICOM PS3.5, annex B.2).
    seriesuid = f"2.25.{uuid.UUID(bytes=uid_seed.generate_state(4).tobytes(), version=4).int}"
    scan = generate_scan(scan_seed, options)
    # The header is written last, so that each header on disk has its voxels.
    write_bytes(folder / f"{seriesuid}.raw", np.ascontiguousarray(scan.voxels, dtype="<i2").data)
    write_bytes(folder / f"{seriesuid}.mhd", format_header(scan, f"{seriesuid}.raw").encode())
    return seriesuid, dataclasses.replace(scan, voxels=scan.voxels[:0])


def format_header(scan: SyntheticScan, data_file: str) -> str:
    """Return a MetaImage header with LUNA16's fields, in LUNA16's order."""
    x, y, z = scan.direction
    # The directions in which the axes start: RAI in LUNA16, and LPI in its flipped scans.
    orientation = "LPI" if x < 0 else "RAI"
    origin, spacing = (" ".join(f"{value:.17g}" for value in vector) for vector in (scan.origin, scan.spacing))
    size = " ".join(map(str, scan.voxels.shape[::-1]))
    return (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = {x:g} 0 0 0 {y:g} 0 0 0 {z:g}\nOffset = {origin}\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = {orientation}\nElementSpacing = {spacing}\nDimSize = {size}\n"
        f"ElementType = MET_SHORT\nElementDataFile = {data_file}\n"
    )


def _write_tables(path: Path, written: list[_Written]) -> None:
    """Write the tables, ``candidates.csv`` last."""
    uids = [seriesuid for seriesuid, _ in written]
    write_bytes(path / "seriesuids.csv", "".join(f"{seriesuid}\n" for seriesuid in uids).encode())
    counts = []
    for name, column, rows in (
        ("annotations.csv", "diameter_mm", [scan.annotations for _, scan in written]),
        ("annotations_excluded.csv", "diameter_mm", [scan.excluded for _, scan in written]),
        ("candidates.csv", "class", [scan.candidates for _, scan in written]),
    ):
        table = pd.DataFrame(np.concatenate(rows), columns=["coordX", "coordY", "coordZ", column])
        table.insert(0, "seriesuid", np.repeat(uids, [len(part) for part in rows]))
        write_bytes(path / name, table.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
        counts.append(len(table))
    logger.info("%s: %d scans, %d nodules, %d candidates", path, len(written), counts[0], counts[2])
