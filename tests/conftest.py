"""Fixtures for all tests."""

from __future__ import annotations

import locale
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from luna_monai.scans.geometry import Geometry

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
REPOSITORY = Path(__file__).resolve().parents[1]

# The log handler of absl closes the stream that was standard error when it was made, as soon as a bundle configures
# logging. Here that would be the file that pytest captures into.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

# To import these takes longer than what most processes do: those of the method "forkserver" find it done.
multiprocessing.set_forkserver_preload(
    ["luna_monai.workflow", "luna_monai.training", "monai.engines", "torch._dynamo", "torch.utils.tensorboard"]
)


@pytest.fixture(autouse=True)
def _leave_locale_as_it_was() -> Iterator[None]:
    # ITK's DICOM writer leaves the whole process in the C locale, where files with umlauts cannot be opened.
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def _leave_logging_as_it_was() -> Iterator[None]:
    # A command adds a handler for the standard output, which pytest closes after the test.
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide GPUs from a test that starts several processes, which all work on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="session")
def sqlite_uri() -> Callable[[Path], str]:
    """Return the function that gives the address of an MLflow database."""
    from luna_monai.training import sqlite_uri

    return lambda path: sqlite_uri(path.parent, path.name)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with real data beside the project, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data are not at hand: no folder {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def luna16_mini(shared_data: Path) -> Path:
    """Return a LUNA16 dataset folder with two real scans."""
    return shared_data / "luna16_mini"


@pytest.fixture(scope="session")
def golden(shared_data: Path) -> dict[str, np.ndarray]:
    """Return what the book's own code computes on ``luna16_mini``."""
    with np.load(shared_data / "book" / "golden_luna16_mini.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def write_noise_dataset(
    folder: Path,
    scans: int = 3,
    candidates: int = 12,
    shape: Sequence[int] = (40, 56, 60),
    compressed: bool = False,
) -> Path:
    """Write a small dataset folder of noise, with one nodule in each scan."""
    random = np.random.default_rng(len(folder.name))
    annotations, rows = [], []
    for number in range(scans):
        uid = f"1.2.3.{number}"
        image = sitk.GetImageFromArray(random.integers(-1500, 1500, shape, dtype=np.int16))
        image.SetSpacing((0.7, 0.7, 1.25))
        image.SetOrigin((-100.0 - number, -150.0, -200.5))
        subset = folder / f"subset{number}"
        subset.mkdir(parents=True)
        sitk.WriteImage(image, str(subset / f"{uid}.mhd"), useCompression=compressed)
        for candidate in range(candidates):
            index = [float(random.integers(0, size)) for size in reversed(shape)]
            world = image.TransformContinuousIndexToPhysicalPoint(index)
            rows.append((uid, *world, int(candidate < 2)))
            if candidate == 0:
                annotations.append((uid, *world, 6.5))
    columns = ["seriesuid", "coordX", "coordY", "coordZ"]
    pd.DataFrame(rows, columns=[*columns, "class"]).to_csv(folder / "candidates.csv", index=False)
    pd.DataFrame(annotations, columns=[*columns, "diameter_mm"]).to_csv(folder / "annotations.csv", index=False)
    pd.DataFrame(columns=[*columns, "diameter_mm"]).to_csv(folder / "annotations_excluded.csv", index=False)
    return folder


def write_dicom_series(
    folder: Path,
    voxels: np.ndarray,
    geometry: Geometry,
    *,
    seriesuid: str = "1.2.826.7",
    tags: Mapping[str, Any] | None = None,
    suffix: str = ".dcm",
) -> list[Path]:
    """Write a volume in HU as CT slices, the last slice first in the order of names.

    ``tags`` adds to those of each slice or replaces them, by keyword: the stored values follow its rescale tags,
    ``BitsStored`` and ``PixelRepresentation``. Returns the files in the order of the volume.
    """
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "StudyInstanceUID": "1.2.826.1",
        "SeriesInstanceUID": seriesuid,
        "FrameOfReferenceUID": "1.2.826.2",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImageOrientationPatient": [f"{value:.12g}" for value in np.asarray(geometry.direction)[:, :2].T.ravel()],
        "PixelSpacing": [geometry.spacing[1], geometry.spacing[0]],
        "SliceThickness": geometry.spacing[2],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "PixelRepresentation": 1,
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        **(tags or {}),
    }
    values["HighBit"] = values["BitsStored"] - 1
    stored = np.round((voxels - float(values["RescaleIntercept"])) / float(values["RescaleSlope"]))
    files = []
    for number, plane in enumerate(stored.astype("<i2" if values["PixelRepresentation"] else "<u2")):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = f"{seriesuid}.{number + 1}"
        dataset.InstanceNumber = number + 1
        position = geometry.index_to_world(np.array([[number, 0, 0]]))[0]
        if "ImagePositionPatient" not in values:
            dataset.ImagePositionPatient = [f"{value:.12g}" for value in position]
        dataset.Rows, dataset.Columns = plane.shape
        dataset.PixelData = plane.tobytes()
        path = folder / f"{seriesuid}-{len(stored) - number:03d}{suffix}"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


@pytest.fixture(scope="session")
def write_dicom() -> Callable[..., list[Path]]:
    """Return the function that writes a volume as a DICOM series into a folder."""
    return write_dicom_series


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """Return the function that writes a small dataset into a folder."""
    return write_noise_dataset


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small dataset into the test's own folder."""

    def make(name: str = "luna", **kwargs: Any) -> Path:
        return write_noise_dataset(tmp_path / name, **kwargs)

    return make
