"""The lungs of phantoms, and what is said about scans that show no chest."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from luna_monai.detection import chest_warnings
from luna_monai.detection.lungs import find_lungs
from luna_monai.scans import Geometry

SHAPE = (90, 110, 130)
SPACING = (3.0, 3.0, 3.5)  # x, y, z


def geometry_of(volume: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Geometry:
    return Geometry.from_header(volume.shape[::-1], spacing, (-190, -160, -400), np.eye(3), source="phantom")


def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """Tell which voxels are in an ellipsoid; centre and radii z, y, x in mm."""
    axes = (np.arange(n) * step for n, step in zip(SHAPE, SPACING[::-1], strict=True))
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    z0, y0, x0 = center
    rz, ry, rx = radii
    return ((z - z0) / rz) ** 2 + ((y - y0) / ry) ** 2 + ((x - x0) / rx) ** 2 <= 1


def make_body(tissue: float = 40) -> np.ndarray:
    """Make a trunk of soft tissue in air, on a table, with noise."""
    volume = np.full(SHAPE, -1000.0)
    volume[ellipsoid((157, 165, 195), (1e5, 110, 160))] = tissue
    volume[:, 95:97, 20:110] = 200
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 0.6)
    return volume + 15 * noise / noise.std()


def make_chest() -> np.ndarray:
    """Make a trunk with two lungs, a trachea, and stomach gas."""
    volume = make_body()
    for x in (120, 270):
        lung = ellipsoid((170, 165, x), (120, 75, 55))
        volume[lung] += -880
    volume[ellipsoid((290, 150, 195), (60, 9, 9))] = -1000
    volume[ellipsoid((20, 120, 240), (22, 30, 40))] = -1000
    return volume


def make_abdomen() -> np.ndarray:
    """Make a trunk with the lowest part of the lungs, and gas in the bowel."""
    volume = make_body()
    for x in (120, 270):
        volume[ellipsoid((340, 180, x), (55, 60, 45))] += -850
    for z, y, x in [(60, 110, 150), (120, 100, 230), (150, 120, 120), (90, 130, 260)]:
        volume[ellipsoid((z, y, x), (30, 18, 40))] = -990
    return volume


def make_head() -> np.ndarray:
    """Make a skull with sinuses and a nose in air."""
    volume = np.full(SHAPE, -1000.0)
    volume[ellipsoid((157, 165, 195), (120, 95, 78))] = 1000
    volume[ellipsoid((157, 165, 195), (113, 88, 71))] = 35
    for x in (180, 210):
        volume[ellipsoid((110, 95, x), (14, 12, 11))] = -950
        volume[ellipsoid((110, 180, x + 2 * (x - 195)), (10, 14, 8))] = -600
    return ndimage.gaussian_filter(volume, 0.5)


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return make_chest()


def test_a_chest_has_no_warning(chest: np.ndarray) -> None:
    assert chest_warnings(chest.astype(np.int16), geometry_of(chest)) == ()


def test_lungs_are_segmented_without_bowel_gas_and_room_air(chest: np.ndarray) -> None:
    lungs = find_lungs(chest, geometry_of(chest))
    wanted = 2 * 4 / 3 * np.pi * 120 * 75 * 55 / 1000
    assert lungs.airy.sum() * 0.008 == pytest.approx(wanted, rel=0.03)
    assert np.median(lungs.hu[lungs.airy]) == pytest.approx(-840, abs=10)
    for position, inside in {
        (170, 165, 120): True,
        (20, 120, 240): False,
        (170, 165, 195): False,
        (5, 5, 5): False,
    }.items():
        index = lungs.geometry.world_to_index(np.add(position[::-1], (-190, -160, -400))[None])[0]
        assert lungs.closed[tuple(index)] == inside


def test_nodules_are_inside_the_lungs(chest: np.ndarray) -> None:
    volume = chest.copy()
    # In the middle of a lung, and on the other lung's surface where it is next to the chest wall.
    centers = [(90, 165, 270), (170, 165, 270), (250, 165, 270), (170, 165, 71.4), (110, 165, 80.2), (240, 165, 89)]
    for center, radius in zip(centers, [5, 9, 15, 8, 5, 12], strict=True):
        volume[ellipsoid(center, (radius, radius, radius))] = 30
    lungs = find_lungs(volume, geometry_of(volume))
    index = lungs.geometry.world_to_index(np.array(centers)[:, ::-1] + (-190, -160, -400))
    assert lungs.closed[tuple(index.T)].all()


def test_a_part_of_the_lungs_is_the_left_or_the_right_one(chest: np.ndarray) -> None:
    lungs = find_lungs(chest, geometry_of(chest))
    assert [lungs.side(np.array((x, 0, -200))) for x in (-90, 90)] == ["right", "left"]
    volume = make_body()
    for y, x in ((125, 262), (203, 272)):  # only one lung, before and behind the heart
        volume[ellipsoid((170, y, x), (120, 28, 45))] = -850
    lungs = find_lungs(volume, geometry_of(volume))
    assert lungs.airy.sum() > 50_000
    assert lungs.side(np.array((80, 0, -200))) is None


@pytest.mark.parametrize("padding", [-1024, -3024])
def test_padding_causes_no_warning(chest: np.ndarray, padding: float) -> None:
    padded = chest.copy()
    y, x = np.indices(SHAPE[1:])
    padded[:, np.hypot(y - 55, x - 65) > 56] = padding
    assert chest_warnings(padded, geometry_of(padded)) == ()


def test_contrast_agent_and_metal_cause_no_warning(chest: np.ndarray) -> None:
    volume = chest.copy()
    volume[ellipsoid((170, 150, 195), (60, 40, 15))] = 450
    volume[ellipsoid((250, 100, 195), (5, 5, 5))] = 20000
    assert chest_warnings(volume, geometry_of(volume)) == ()


@pytest.mark.parametrize("part", [slice(0, 45), slice(20, 60), slice(20, 45)])
def test_a_part_of_a_chest_causes_no_warning(chest: np.ndarray, part: slice) -> None:
    # The lungs reach the lowest and the highest slice.
    assert chest_warnings(chest[part], geometry_of(chest[part])) == ()


def test_a_small_part_of_a_lung_causes_no_warning(chest: np.ndarray) -> None:
    part = chest[40:60, 40:70, 80:100]
    assert chest_warnings(part, geometry_of(part)) == ()
    assert find_lungs(part, geometry_of(part)).mask.mean() > 0.8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: np.zeros(SHAPE), "values from 0 to 0"),
        (lambda: np.full(SHAPE, -1000.0), "0.0% soft tissue and bone; values from -1000 to -1000"),
        (lambda: make_body(0), ": 0 ml of lung, 0.0% of the body"),
        (make_abdomen, "ml of lung"),
        (make_head, "ml of lung"),
        (lambda: make_chest() + 1024, "rescale"),
        (lambda: (make_chest() + 1024) / 2048, "Hounsfield"),
        (lambda: make_body()[:, 99:], "0.0% soft tissue"),
        (lambda: np.random.default_rng(0).normal(0, 20, SHAPE), "show the chest"),
        (lambda: np.where(make_body() > -500, -850.0, 100.0), r"[1-9]\d{4} ml of lung"),
    ],
    ids=["zeros", "air", "water", "abdomen", "head", "no rescale", "fractions", "table", "noise", "giant"],
)
def test_other_scans_cause_one_warning(make: Callable[[], np.ndarray], words: str) -> None:
    volume = make()
    (found,) = chest_warnings(volume, geometry_of(volume))
    assert re.search(words, found), found
    assert found[0].isupper()
    assert found.endswith(".")
