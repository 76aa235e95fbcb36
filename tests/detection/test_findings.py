"""Findings on balls of which the size is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from luna_monai.detection import find_findings
from luna_monai.scans import Geometry

SPACING = (0.7, 0.7, 1.0)
#: Center x, y, z and radius, mm.
BALLS = np.array([[20, 20, 20, 4], [40, 38, 22, 6]], dtype=float)


@pytest.fixture(scope="module")
def balls() -> tuple[np.ndarray, Geometry]:
    shape = (60, 80, 90)
    z, y, x = (np.arange(size) * step for size, step in zip(shape, SPACING[::-1], strict=True))
    share = np.zeros(shape)
    for cx, cy, cz, radius in BALLS:
        away = np.sqrt((x - cx) ** 2 + (y - cy)[:, None] ** 2 + (z - cz)[:, None, None] ** 2)
        share = np.maximum(share, np.clip(radius - away + 0.5, 0, 1))
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 0.7)
    volume = -850 + 880 * share + 25 * noise / noise.std()
    geometry = Geometry.from_header(shape[::-1], SPACING, (-40, 10, -300), np.eye(3), source="balls")
    return np.rint(volume).astype(np.int16), geometry


def test_candidates_on_one_structure_are_one_finding(balls: tuple[np.ndarray, Geometry]) -> None:
    volume, geometry = balls
    first, second = BALLS[:, :3] + geometry.origin
    offsets = [[0, 0, 0], [0, 0, 0], [3, 0, 0], [0, -3, 3], [0, 0, -2]]
    points = np.stack([first, second, second, second, first]) + offsets
    found = find_findings(volume, geometry, points, [0.3, 0.5, 0.9, 0.8, 0.2])
    assert [finding.candidates for finding in found] == [(2, 3, 1), (0, 4)]
    assert [finding.probability for finding in found] == [0.9, 0.3]
    for finding, center, radius in zip(found, [second, first], [6, 4], strict=True):
        np.testing.assert_allclose(finding.position, center, atol=0.3)
        assert finding.diameter_mm == pytest.approx(2 * radius, rel=0.1)
        assert finding.attenuation == "solid"
