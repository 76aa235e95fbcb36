"""Proposed candidates: on real scans, and on phantoms of which the truth is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage
from threadpoolctl import threadpool_limits

from luna_monai.detection import BlobProposer, chest_warnings
from luna_monai.detection.lungs import find_lungs
from luna_monai.scans import Geometry, read_scan

COORDINATES = ["coordX", "coordY", "coordZ"]
# Centres x, y, z and radii in mm, in a block of lung of 80 x 72 x 64 mm; the last one sits on the chest wall.
BLOBS = np.array([[20.3, 20.8, 20.4, 3.0], [50.2, 22.6, 40.7, 6.0], [24.7, 52.1, 42.3, 11.0], [59.6, 48.4, 19.9, 2.5]])
ON_WALL = np.array([73.0, 20.0, 16.0, 4.0])
EXTENT = np.array([80.0, 72.0, 64.0])


def make_phantom(
    spacing: tuple[float, float, float], direction: np.ndarray | None = None
) -> tuple[np.ndarray, Geometry]:
    """Make lung with blobs, a vessel and a wall, sampled finely enough for soft edges."""
    size = tuple(round(extent / step) for extent, step in zip(EXTENT, spacing, strict=True))
    fine = [4 if step > 2 else 2 for step in spacing]
    axes = [(np.arange(n * f) + 0.5) * step / f for n, f, step in zip(size, fine, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes[::-1], indexing="ij", sparse=True)
    tissue = (x > 75.0) | (np.hypot(y - 36, z - 58) < 2)
    for cx, cy, cz, radius in [*BLOBS, ON_WALL]:
        tissue |= (x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 <= radius**2
    nx, ny, nz = size
    share = tissue.reshape(nz, fine[2], ny, fine[1], nx, fine[0]).mean((1, 3, 5))
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=share.shape), 0.7)
    volume = -850 + 870 * share + 25 * noise / noise.std()
    direction = np.eye(3) if direction is None else direction
    first = direction @ (np.asarray(spacing) / 2) + [-31.0, 17.5, -140.25]
    return np.rint(volume).astype(np.int16), Geometry.from_header(size, spacing, first, direction, source="phantom")


def to_world(points: np.ndarray, direction: np.ndarray | None = None) -> np.ndarray:
    return points @ (np.eye(3) if direction is None else direction).T + [-31.0, 17.5, -140.25]


def distances(found: pd.DataFrame, points: np.ndarray) -> np.ndarray:
    """Distance of the nearest candidate from each point, mm."""
    gaps = found[COORDINATES].to_numpy()[None] - points[:, None]
    return np.linalg.norm(gaps, axis=2).min(axis=1)


@pytest.fixture(scope="module")
def phantom() -> tuple[np.ndarray, Geometry]:
    return make_phantom((0.8, 0.8, 1.0))


@pytest.fixture(scope="module")
def found(phantom: tuple[np.ndarray, Geometry]) -> pd.DataFrame:
    return BlobProposer()(*phantom)


@dataclass
class OnScan:
    """The results on one real scan."""

    geometry: Geometry
    proposals: pd.DataFrame
    warnings: tuple[str, ...]


@pytest.fixture(scope="module")
def on_real_scans(luna16_mini: Path) -> dict[str, OnScan]:
    results = {}
    for path in sorted(luna16_mini.glob("subset*/*.mhd")):
        scan = read_scan(path)
        volume, geometry = scan.voxels, scan.geometry
        lungs = find_lungs(volume, geometry)
        proposals, warnings = BlobProposer()(volume, geometry, lungs), chest_warnings(volume, geometry, lungs)
        results[path.stem] = OnScan(geometry, proposals, warnings)
    return results


def test_real_nodules_are_hit_by_at_most_300_candidates(on_real_scans: dict[str, OnScan], luna16_mini: Path) -> None:
    annotations = pd.read_csv(luna16_mini / "annotations.csv")
    assert len(annotations) == 3
    assert set(on_real_scans) == set(annotations["seriesuid"])
    for seriesuid, result in on_real_scans.items():
        assert 50 < len(result.proposals) <= 300
        nodules = annotations[annotations["seriesuid"] == seriesuid]
        assert (distances(result.proposals, nodules[COORDINATES].to_numpy()) <= nodules["diameter_mm"] / 2).all()


def test_real_candidates_are_apart_and_inside_the_scan(on_real_scans: dict[str, OnScan]) -> None:
    for result in on_real_scans.values():
        points = result.proposals[COORDINATES].to_numpy()
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
        assert gaps[np.triu_indices(len(points), 1)].min() >= 2.0
        index = result.geometry.world_to_index(points)
        assert ((index >= 0) & (index < result.geometry.shape)).all()


def test_real_scans_have_no_warning(on_real_scans: dict[str, OnScan]) -> None:
    assert [result.warnings for result in on_real_scans.values()] == [(), ()]


def test_blobs_are_found_to_a_millimetre_and_come_first(found: pd.DataFrame) -> None:
    assert list(found.columns) == COORDINATES
    assert distances(found, to_world(BLOBS[:, :3])).max() < 1.0
    assert distances(found.head(len(BLOBS) + 4), to_world(BLOBS[:, :3])).max() < 1.0


def test_nodule_on_the_chest_wall_is_hit(found: pd.DataFrame) -> None:
    assert distances(found, to_world(ON_WALL[None, :3]))[0] <= ON_WALL[3]


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.5), (0.9, 0.9, 2.5), (0.7, 0.7, 5.0), (2.5, 0.8, 0.8)])
def test_any_spacing(spacing: tuple[float, float, float]) -> None:
    proposals = BlobProposer()(*make_phantom(spacing))
    # The two smallest blobs are hardly more than a slice of 5 mm.
    np.testing.assert_array_less(distances(proposals, to_world(BLOBS[:, :3])), BLOBS[:, 3])
    if max(spacing) < 5:
        assert distances(proposals, to_world(BLOBS[:, :3])).max() < 1.0


def test_oblique_direction() -> None:
    direction, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    proposals = BlobProposer()(*make_phantom((0.8, 0.8, 1.0), direction))
    assert distances(proposals, to_world(BLOBS[:, :3], direction)).max() < 1.0


@pytest.mark.parametrize("axes", ["z", "yx", "zyx"])
def test_flipped_axes_give_the_same_candidates(
    phantom: tuple[np.ndarray, Geometry], found: pd.DataFrame, axes: str
) -> None:
    volume, geometry = phantom
    flipped = ["zyx".index(axis) for axis in axes]
    corner = [volume.shape[axis] - 1 if axis in flipped else 0 for axis in range(3)]
    direction = np.asarray(geometry.direction) * [-1 if 2 - column in flipped else 1 for column in range(3)]
    turned = Geometry.from_header(
        geometry.size, geometry.spacing, geometry.index_to_world(np.array([corner]))[0], direction, source="flipped"
    )
    again = BlobProposer()(np.flip(volume, flipped), turned)
    assert distances(again, to_world(BLOBS[:, :3])).max() < 1.0
    # Apart from the averaging of voxels, which begins at the other end.
    assert distances(again, found[COORDINATES].to_numpy()[: len(BLOBS)]).max() < 0.3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, ">i2"])
def test_any_type_of_voxels(phantom: tuple[np.ndarray, Geometry], found: pd.DataFrame, dtype: type) -> None:
    volume, geometry = phantom
    pd.testing.assert_frame_equal(BlobProposer()(volume.astype(dtype), geometry), found)


def test_same_candidates_each_time_with_any_number_of_threads(
    phantom: tuple[np.ndarray, Geometry], found: pd.DataFrame
) -> None:
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            with threadpool_limits(limits=threads):
                pd.testing.assert_frame_equal(BlobProposer()(*phantom), found)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_changes_nothing(phantom: tuple[np.ndarray, Geometry], padding: float) -> None:
    volume, geometry = phantom
    padded = volume.astype(np.float32)
    # The corners of the field of view: a circle, through lung and wall.
    y, x = np.indices(volume.shape[1:])
    outside = np.hypot(y - volume.shape[1] / 2 + 0.5, x - volume.shape[2] / 2 + 0.5) > volume.shape[2] / 2
    padded[:, outside] = padding
    assert distances(BlobProposer()(padded, geometry), to_world(BLOBS[:, :3])).max() < 1.0


def test_fewer_candidates_are_the_best_ones(phantom: tuple[np.ndarray, Geometry], found: pd.DataFrame) -> None:
    assert len(found) > 5
    pd.testing.assert_frame_equal(BlobProposer(max_candidates=5)(*phantom), found.head(5))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 40), (3, 5, 7), (20, 20, 20)])
def test_tiny_volumes(shape: tuple[int, int, int]) -> None:
    volume = np.full(shape, -850, dtype=np.int16)
    geometry = Geometry.from_header(shape[::-1], (0.7, 0.7, 1.25), (0, 0, 0), np.eye(3), source="tiny")
    assert list(BlobProposer()(volume, geometry).columns) == COORDINATES


def test_volume_smaller_than_a_crop(phantom: tuple[np.ndarray, Geometry]) -> None:
    volume, geometry = phantom
    first = np.array([[32, 10, 45]])
    part = volume[32:50, 10:46, 45:81]
    cut = Geometry.from_header(
        part.shape[::-1], geometry.spacing, geometry.index_to_world(first)[0], np.eye(3), source="part"
    )
    assert distances(BlobProposer()(part, cut), to_world(BLOBS[1:2, :3]))[0] < 1.0


@pytest.mark.parametrize("value", [-1024, 0, 1000])
def test_without_lungs_there_are_no_candidates(value: int) -> None:
    volume = np.full((30, 40, 50), value, dtype=np.int16)
    geometry = Geometry.from_header((50, 40, 30), (2, 2, 2), (0, 0, 0), np.eye(3), source="block")
    proposals = BlobProposer()(volume, geometry)
    assert list(proposals.columns) == COORDINATES
    assert len(proposals) == 0
    assert (proposals.dtypes == np.float64).all()


@pytest.mark.parametrize("spacing", [(0.8, 0.8, 1.0), (0.5, 0.5, 1.0), (1.0, 1.0, 2.0)])
def test_rounding_errors_of_the_spacing_do_not_change_the_candidates(spacing: tuple[float, float, float]) -> None:
    volume, geometry = make_phantom(spacing)
    rows = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    results = []
    # As a file with float32 numbers has it, and at both sides of the number.
    for bits in (0, 1e-7, -1e-7):
        other = np.multiply(spacing, 1 + bits)
        results.append(
            BlobProposer()(volume, Geometry.from_header(geometry.size, other, (0, 0, 0), rows, source="bits"))
        )
    for other in results[1:]:
        pd.testing.assert_frame_equal(other, results[0], rtol=0, atol=1e-3)
