"""Findings on structures of which the size is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from luna_monai.detection import Finding, find_findings, findings_table
from luna_monai.scans import Geometry

SPACING = (0.7, 0.7, 1.25)
SHAPE = (56, 90, 152)
ORIGIN = (-46.0, 10.0, -300.0)
#: A body of soft tissue with two lungs, x in mm; the scan cuts it everywhere but at the sides.
LUNGS = ((8.0, 40.0), (66.0, 98.0))
VESSEL_HU, TISSUE_HU, LUNG_HU = 30.0, 30.0, -850.0


def axes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y, z = (np.arange(size) * step for size, step in zip(SHAPE[::-1], SPACING, strict=True))
    return x, y[:, None], z[:, None, None]


def ball(center: tuple[float, float, float], radius: float) -> np.ndarray:
    """Share of each voxel that a ball with a soft edge fills; its center is x, y, z in mm."""
    away = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes(), center, strict=True)))
    return np.clip((radius - away) / 1.4 + 0.5, 0, 1)


def vessel(y: float, z: float, radius: float) -> np.ndarray:
    """The same for a tube along x, in both lungs."""
    _, ys, zs = axes()
    return np.broadcast_to(np.clip((radius - np.hypot(ys - y, zs - z)) / 1.4 + 0.5, 0, 1), SHAPE)


def scan(*parts: tuple[np.ndarray, float]) -> tuple[np.ndarray, Geometry]:
    """Paint parts (shares of voxels, HU) into two lungs, one after the other."""
    x, _, _ = axes()
    outside = np.ones(SHAPE)
    for low, high in LUNGS:
        outside *= 1 - np.clip((x - low) / 1.4 + 0.5, 0, 1) * np.clip((high - x) / 1.4 + 0.5, 0, 1)
    hu = LUNG_HU + (TISSUE_HU - LUNG_HU) * outside
    for share, value in parts:
        hu += (value - hu) * share
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 0.7)
    geometry = Geometry.from_header(SHAPE[::-1], SPACING, ORIGIN, np.eye(3), source="phantom")
    return np.rint(hu + 20 * noise / noise.std()).astype(np.int16), geometry


def world(*points: tuple[float, float, float]) -> np.ndarray:
    return np.array(points) + ORIGIN


def only(volume: np.ndarray, geometry: Geometry, point: tuple[float, float, float]) -> Finding:
    (found,) = find_findings(volume, geometry, world(point), [0.7])
    return found


def test_candidates_on_one_structure_are_one_finding() -> None:
    first, second = (24.0, 30.0, 30.0), (80.0, 32.0, 36.0)
    volume, geometry = scan((ball(first, 4), 30), (ball(second, 6), 30))
    offsets = [[0, 0, 0], [0, 0, 0], [3, 0, 0], [0, -3, 3], [0, 0, -2]]
    points = world(first, second, second, second, first) + offsets
    found = find_findings(volume, geometry, points, [0.3, 0.5, 0.9, 0.8, 0.2])
    assert [finding.candidates for finding in found] == [(2, 3, 1), (0, 4)]
    assert [finding.probability for finding in found] == [0.9, 0.3]
    assert [finding.lung for finding in found] == ["left", "right"]
    for finding, center, radius in zip(found, world(second, first), [6, 4], strict=True):
        np.testing.assert_allclose(finding.position, center, atol=0.3)
        assert finding.diameter_mm == pytest.approx(2 * radius, rel=0.1)
        assert finding.long_axis_mm == pytest.approx(2 * radius, rel=0.15)
        assert finding.short_axis_mm == pytest.approx(2 * radius, rel=0.15)
        assert finding.volume_mm3 == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.3)
        assert finding.attenuation == "solid"
    assert found[0].pleura_distance_mm == pytest.approx(8, abs=2)


def test_the_outline_is_in_the_grid_of_the_scan() -> None:
    center = (24.0, 30.0, 30.0)
    volume, geometry = scan((ball(center, 5), 30))
    found = only(volume, geometry, center)
    assert found.outline is not None
    assert found.outline_start is not None
    whole = np.zeros(SHAPE, dtype=bool)
    whole[tuple(slice(a, a + n) for a, n in zip(found.outline_start, found.outline.shape, strict=True))] = found.outline
    truth = ball(center, 5) > 0.5
    assert 2 * (whole & truth).sum() / (whole.sum() + truth.sum()) > 0.9
    assert found.mean_hu == pytest.approx(volume[whole].mean())


@pytest.mark.parametrize(
    ("parts", "diameter", "attenuation"),
    [
        ([(vessel(30, 30, 1.2), VESSEL_HU)], 10, "solid"),
        ([(ball((24, 30, 30), 2.5), -950)], 10, "solid"),
        ([(ball((24, 30, 30), 8), -600), (ball((24, 30, 30), 4), 30)], 16, "part-solid"),
    ],
    ids=["on a vessel", "cavity", "halo"],
)
def test_attached_vessels_cavities_and_halos(
    parts: list[tuple[np.ndarray, float]], diameter: float, attenuation: str
) -> None:
    volume, geometry = scan((ball((24, 30, 30), 5), 30), *parts)
    found = only(volume, geometry, (24, 30, 30))
    assert found.diameter_mm == pytest.approx(diameter, rel=0.1)
    assert found.attenuation == attenuation


@pytest.mark.parametrize(("radius", "air"), [(9, 5), (10, 5), (12, 7), (12, 9)])
def test_a_large_cavity_is_one_finding_with_its_air(radius: float, air: float) -> None:
    center, wall = (24.0, 30.0, 34.0), (radius + air) / 2
    volume, geometry = scan((ball(center, radius), 30), (ball(center, air), -1000))
    points = world(center, (24 - wall, 30, 34), (24, 30 + wall, 34))
    (found,) = find_findings(volume, geometry, points, [0.5, 0.9, 0.8])
    assert found.diameter_mm == pytest.approx(2 * radius, rel=0.1)
    np.testing.assert_allclose(found.position, world(center)[0], atol=0.7)
    assert found.attenuation == "solid"


def test_ground_glass() -> None:
    volume, geometry = scan((ball((24, 30, 30), 6), -550))
    found = only(volume, geometry, (24, 30, 30))
    assert found.diameter_mm == pytest.approx(12, rel=0.1)
    assert found.attenuation == "ground-glass"


def test_outlines_end_at_the_pleura() -> None:
    # Four fifths of a ball of 12 mm are inside the lung.
    volume, geometry = scan((ball((11.5, 30, 30), 6), 30))
    found = only(volume, geometry, (12.5, 30, 30))
    assert found.diameter_mm == pytest.approx(11.2, rel=0.1)
    assert found.pleura_distance_mm == pytest.approx(0, abs=2)


@pytest.mark.parametrize("point", [(24, 45, 45), (24, 30, 30)], ids=["lung", "vessel"])
def test_without_an_outline_sizes_are_none(point: tuple[float, float, float]) -> None:
    volume, geometry = scan((vessel(30, 30, 1.5), VESSEL_HU))
    found = only(volume, geometry, point)
    np.testing.assert_array_equal(found.position, world(point)[0])
    assert found.outline is None
    sizes = (found.diameter_mm, found.long_axis_mm, found.short_axis_mm, found.volume_mm3, found.mean_hu)
    assert sizes == (None,) * 5
    assert found.attenuation is None
    assert found.lung == "right"


def test_only_the_most_probable_findings_are_outlined() -> None:
    centers = [(24.0, 30.0, 30.0), (80.0, 32.0, 36.0)]
    volume, geometry = scan(*[(ball(center, 4), 30) for center in centers])
    for limits, outlined in (({"max_outlines": 1}, False), ({"min_probability": 0.5}, False), ({}, True)):
        found = find_findings(volume, geometry, world(*centers), [0.2, 0.9], **limits)
        assert [finding.candidates for finding in found] == [(1,), (0,)]
        assert [finding.outline is not None for finding in found] == [True, outlined]


def test_scans_without_lungs_or_candidates() -> None:
    geometry = Geometry.from_header((40, 40, 40), (1, 1, 1), (0, 0, 0), np.eye(3), source="block")
    block = np.zeros((40, 40, 40), dtype=np.int16)
    assert find_findings(block, geometry, np.zeros((0, 3)), []) == []
    (found,) = find_findings(block, geometry, np.array([[20, 20, 20]]), [0.5])
    assert (found.diameter_mm, found.lung, found.pleura_distance_mm) == (None, None, None)


def test_findings_as_rows_of_a_submission() -> None:
    rows = findings_table([Finding((1.0, 2.0, 3.0), 0.9, (4, 2)), Finding((5.0, 6.0, 7.0), 0.1, (0,))], "1.2.3")
    submission = rows[["seriesuid", "coordX", "coordY", "coordZ", "probability"]]
    assert submission.to_csv(index=False).splitlines() == [
        "seriesuid,coordX,coordY,coordZ,probability",
        "1.2.3,1.0,2.0,3.0,0.9",
        "1.2.3,5.0,6.0,7.0,0.1",
    ]
    assert rows["candidates"].tolist() == [2, 1]
    assert rows["diameter_mm"].isna().all()
    assert findings_table([], "1.2.3").columns.equals(rows.columns)
