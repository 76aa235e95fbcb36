"""Writing synthetic scans as a LUNA16 dataset folder."""

from __future__ import annotations

import logging
import math
import multiprocessing
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from luna_monai.errors import LunaError
from luna_monai.files import atomic_write
from luna_monai.synthetic.scan import ScanOptions, SyntheticScan, generate_scan

logger = logging.getLogger(__name__)

_COORDINATES = ["coordX", "coordY", "coordZ"]
# Smallest and largest value, and the unit, of each argument. A million candidates of a scan are 150 GB to cache.
_RANGES: dict[str, tuple[float, float, str]] = {
    "scans": (1, math.inf, ""),
    "candidates_per_scan": (1, 100_000, ""),
    "nodules_per_scan": (0, 100, ""),
    "seed": (0, math.inf, ""),
    "workers": (0, math.inf, ""),
    "in_plane": (64, 512, " voxels"),
    "slices": (40, 1000, " voxels"),
}
_MEAN_SLICES = 230
_LOG_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True)
class _Task:
    """One scan to write: all that its worker has to know."""

    folder: Path
    seed: np.random.SeedSequence
    options: ScanOptions


@dataclass(frozen=True)
class _Written:
    """One scan's rows of the tables."""

    seriesuid: str
    annotations: NDArray[np.float64]
    excluded: NDArray[np.float64]
    candidates: NDArray[np.float64]


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
) -> Path:
    """Write synthetic chest CTs as a LUNA16 dataset folder.

    The folder holds ``subset0`` … with ``UID.mhd`` and ``UID.raw`` (scans take turns over at most ten subsets, two or
    more in each), ``annotations.csv``, ``annotations_excluded.csv``, ``candidates.csv`` and ``seriesuids.csv``. A scan
    gets its name when it is complete, and the tables are written last: a folder that has them is whole.

    Voxel spacing, position and direction are distributed as in LUNA16. With fewer than 400 voxels in-plane the scan is
    a targeted reconstruction: the same spacing, but only a part of one lung and what surrounds it.

    Args:
        path: the folder to write; made if missing, and empty otherwise.
        scans: how many scans.
        candidates_per_scan: rows of ``candidates.csv`` a scan; LUNA16 has about 620.
        nodules_per_scan: mean number of annotated nodules; LUNA16 has 1.34 (1,186 in 888 scans).
        seed: decides everything: the same arguments give the same bytes, whatever the number of workers.
        workers: processes that generate scans; 0 for none but this one.
        in_plane: voxels along x and along y, 64 to 512.
        slices: voxels along z, 40 to 1000; as many as the whole thorax needs when None.

    Returns:
        The folder.

    Raises:
        LunaError: when an argument is out of range, the folder is not empty, or it cannot be written.
    """
    path = Path(path)
    _check_arguments(
        scans=scans,
        candidates_per_scan=candidates_per_scan,
        nodules_per_scan=nodules_per_scan,
        seed=seed,
        workers=workers,
        in_plane=in_plane,
        slices=slices,
    )
    _prepare_folder(path, scans * in_plane**2 * (slices or _MEAN_SLICES) * 2)
    subsets = min(10, max(1, scans // 2))
    options = ScanOptions(in_plane, slices, candidates_per_scan, nodules_per_scan)
    tasks = [
        _Task(path / f"subset{number % subsets}", child, options)
        for number, child in enumerate(np.random.SeedSequence(seed).spawn(scans))
    ]
    try:
        for subset in range(subsets):
            (path / f"subset{subset}").mkdir(exist_ok=True)
        _write_tables(path, list(_with_progress(_run(tasks, workers), scans)))
    except OSError as error:
        raise LunaError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from error
    return path


def _check_arguments(**values: float | None) -> None:
    """Raise a LunaError that names the first argument that is out of range."""
    for name, value in values.items():
        least, most, unit = _RANGES[name]
        if value is not None and not least <= value <= most:
            limits = f"at least {least}" if math.isinf(most) else f"between {least} and {most}{unit}"
            raise LunaError(f"{name} must be {limits}, found {value}")


def _prepare_folder(path: Path, size: int) -> None:
    """Make the folder and check that it is empty and that ``size`` bytes fit."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        found = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise LunaError(f"{path}: cannot be used as a folder to write to ({error.strerror})") from error
    if found:
        raise LunaError(f"{path}: the folder is not empty (it holds {found[0]!r}); name a new one, or empty it first")
    free = shutil.disk_usage(path).free
    if size > free:
        raise LunaError(
            f"{path}: about {size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; "
            "ask for fewer or smaller scans, or another disk"
        )


def _ignore_interrupts() -> None:
    """Leave Ctrl-C to the parent, which lets the scans at hand finish."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(tasks: list[_Task], workers: int) -> Iterator[_Written]:
    """Write all scans and yield the rows of each, in order."""
    if workers == 0:
        yield from map(_write_scan, tasks)
        return
    # Forking a process that has loaded torch, with its threads, can hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_ignore_interrupts)
    try:
        yield from executor.map(_write_scan, tasks)
    except BrokenProcessPool as error:
        raise LunaError(
            "a worker process ended unexpectedly, most often because memory ran out (a scan of 512 x 512 x 600 "
            "voxels needs 3 GB); use fewer workers"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _with_progress(results: Iterator[_Written], scans: int) -> Iterator[_Written]:
    """Pass ``results`` on, with a progress bar on a terminal and a line now and then otherwise."""
    if sys.stderr.isatty():
        yield from tqdm(results, total=scans, desc="synthetic scans", unit="scan")
        return
    began = reported = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if done == scans or now - reported >= _LOG_INTERVAL_SECONDS:
            logger.info("synthetic scans: %d of %d written, %.0f s", done, scans, now - began)
            reported = now


def _write_scan(task: _Task) -> _Written:
    """Generate one scan and write its two files."""
    uid_seed, scan_seed = task.seed.spawn(2)
    # A UUID below the root 2.25 is a valid DICOM UID that needs no registration (DICOM PS3.5, annex B.2).
    seriesuid = f"2.25.{uuid.UUID(bytes=uid_seed.generate_state(4).tobytes(), version=4).int}"
    scan = generate_scan(scan_seed, task.options)
    # The header comes last: who finds a header finds its voxels.
    with atomic_write(task.folder / f"{seriesuid}.raw") as file:
        file.write(np.ascontiguousarray(scan.voxels, dtype="<i2").data)
    with atomic_write(task.folder / f"{seriesuid}.mhd") as file:
        file.write(format_header(scan, f"{seriesuid}.raw").encode())
    return _Written(seriesuid, scan.annotations, scan.excluded, scan.candidates)


def format_header(scan: SyntheticScan, data_file: str) -> str:
    """Write a MetaImage header with LUNA16's fields, in LUNA16's order.

    Args:
        scan: the scan.
        data_file: name of the file with the voxels.

    Returns:
        The header's text.
    """
    x, y, z = (f"{sign:g}" for sign in scan.direction)
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": f"{x} 0 0 0 {y} 0 0 0 {z}",
        "Offset": " ".join(f"{value:.17g}" for value in scan.origin),
        "CenterOfRotation": "0 0 0",
        # Where the axes come from: LUNA16 has RAI, and LPI for its flipped scans.
        "AnatomicalOrientation": "LPI" if scan.direction[0] < 0 else "RAI",
        "ElementSpacing": " ".join(f"{value:.17g}" for value in scan.spacing),
        "DimSize": " ".join(str(size) for size in scan.voxels.shape[::-1]),
        "ElementType": "MET_SHORT",
        "ElementDataFile": data_file,
    }
    return "".join(f"{name} = {value}\n" for name, value in fields.items())


def _write_tables(path: Path, written: list[_Written]) -> None:
    """Write the tables, ``candidates.csv`` last."""

    def table(name: str, column: str, attribute: str) -> None:
        rows = np.concatenate([getattr(scan, attribute) for scan in written])
        frame = pd.DataFrame(rows, columns=[*_COORDINATES, column])
        if column == "class":
            frame[column] = frame[column].astype(int)
        uids = np.repeat([scan.seriesuid for scan in written], [len(getattr(scan, attribute)) for scan in written])
        frame.insert(0, "seriesuid", uids)
        with atomic_write(path / name) as file:
            file.write(frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())

    with atomic_write(path / "seriesuids.csv") as file:
        file.write("".join(f"{scan.seriesuid}\n" for scan in written).encode())
    table("annotations.csv", "diameter_mm", "annotations")
    table("annotations_excluded.csv", "diameter_mm", "excluded")
    table("candidates.csv", "class", "candidates")
    logger.info(
        "%s: %d scans, %d nodules, %d candidates",
        path,
        len(written),
        sum(len(scan.annotations) for scan in written),
        sum(len(scan.candidates) for scan in written),
    )
