"""Geometry against SimpleITK's own arithmetic and the book's rounding."""

import numpy as np
import pytest
import SimpleITK as sitk

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

FLIPPED = (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)


def oblique(seed: int) -> tuple[float, ...]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return tuple(q.ravel())


def make_image(direction: tuple[float, ...]) -> sitk.Image:
    image = sitk.Image((30, 20, 10), sitk.sitkInt16)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-166.0, 171.7, -340.25))
    image.SetDirection(direction)
    return image


def geometry_of(image: sitk.Image) -> Geometry:
    return Geometry.from_header(
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), source="image"
    )


@pytest.fixture(params=[(1.0, 0, 0, 0, 1, 0, 0, 0, 1), FLIPPED, oblique(1), oblique(2)])
def image(request: pytest.FixtureRequest) -> sitk.Image:
    return make_image(request.param)


def test_world_and_index_are_simpleitks(image: sitk.Image) -> None:
    geometry = geometry_of(image)
    index = np.random.default_rng(0).uniform(-5, 35, size=(50, 3))
    world = np.array([image.TransformContinuousIndexToPhysicalPoint(point[::-1]) for point in index])
    np.testing.assert_allclose(geometry.index_to_world(index), world, atol=1e-9)
    found = geometry.world_to_index(world)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, np.round(index))


def test_affine_maps_array_indices_to_ras(image: sitk.Image) -> None:
    geometry = geometry_of(image)
    assert geometry.affine_ras_zyx.dtype == np.float64
    index = np.array([[0, 0, 0], [9, 19, 29], [3, 5, 7]])
    ras = index @ geometry.affine_ras_zyx[:3, :3].T + geometry.affine_ras_zyx[:3, 3]
    np.testing.assert_allclose(ras * [-1, -1, 1], geometry.index_to_world(index), atol=1e-9)


def test_halves_are_rounded_to_even() -> None:
    geometry = Geometry.from_header((9, 9, 9), (1, 1, 1), (0, 0, 0), np.eye(3), source="x")
    found = geometry.world_to_index(np.array([[0.5, 1.5, 2.5], [-0.5, 3.5, 4.5]]))
    np.testing.assert_array_equal(found, [[2, 2, 0], [4, 4, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (4, 5)}, "a scan has 3 dimensions, found 2 (4 × 5)"),
        ({"size": (4, 0, 5)}, "check the header's values and their unit, found a size of 4 0 5 voxels"),
        ({"spacing": (1, 0, 1)}, "a spacing of 1 0 1 mm"),
        ({"spacing": (1, float("nan"), 1)}, "a spacing of 1 nan 1 mm"),
        ({"spacing": (700, 700, 1250)}, "a spacing of 700 700 1250 mm"),
        ({"spacing": (1, 1, 1e300)}, "a spacing of 1 1 1e+300 mm"),
        ({"spacing": (0.0007, 0.0007, 0.001)}, "a spacing of 0.0007 0.0007 0.001 mm"),
        ({"size": (10000, 5, 6)}, "a size of 10000 5 6 voxels"),
        ({"origin": (1, 1e300, 1)}, "an origin of 1 1e+300 1 mm"),
        ({"origin": (1, float("inf"), 1)}, "an origin of 1 inf 1 mm"),
        (
            {"direction": np.zeros(9)},
            "perpendicular unit vectors; resample the scan onto a rectangular grid, found 0 0 0 0 0 0 0 0 0",
        ),
        ({"direction": [1, 0.2, 0, 0, 1, 0, 0, 0, 1]}, "perpendicular unit vectors"),
        ({"direction": [float("nan")] * 9}, "perpendicular unit vectors"),
    ],
)
def test_impossible_headers_are_refused(change: dict[str, object], message: str) -> None:
    good = {"size": (4, 5, 6), "spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": np.eye(3)}
    with pytest.raises(LunaError) as caught:
        Geometry.from_header(**(good | change), source="scan.mhd")
    assert str(caught.value).startswith("scan.mhd: ")
    assert message in str(caught.value)
