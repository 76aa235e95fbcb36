"""Pictures of candidates: the right place, the right way round, in the right scale."""

import io

import numpy as np
import pytest
from PIL import Image

from luna_monai.reports.atlas import FIELD_MM, PIXELS, WINDOW_HU, ScanViewer, circles, voxel_of

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
TURNED = (0, 1, 0, 1, 0, 0, 0, 0, -1)
OBLIQUE = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)
CENTER = np.array([2.0, -4.0, 28.0])


def picture(plane):
    return np.asarray(Image.open(io.BytesIO(plane.png)))


def grey(hu):
    return round(255 * (hu - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]))


@pytest.mark.parametrize("direction", [IDENTITY, FLIPPED, TURNED, OBLIQUE])
def test_planes_are_the_patients_whatever_the_scans_orientation(scan_with_balls, direction):
    # A large ball at the candidate, and small ones 12 mm to the patient's left, back and head of it.
    small = [(CENTER + 12 * np.eye(3)[axis]).tolist() for axis in range(3)]
    viewer = ScanViewer.open(scan_with_balls([(*CENTER, 10.0), *((*ball, 5.0) for ball in small)], direction))
    axial, coronal, sagittal = (picture(plane) for plane in viewer.planes(CENTER))
    middle, step = PIXELS // 2, round(12 * PIXELS / FIELD_MM)
    for image, right, down in ((axial, 1, 1), (coronal, 1, -1), (sagittal, 1, -1)):
        assert image.shape == (PIXELS, PIXELS)
        tissue, lung = grey(30), grey(-850)
        assert image[middle, middle] == tissue
        assert image[middle, middle + right * step] > (tissue + lung) / 2
        assert image[middle + down * step, middle] > (tissue + lung) / 2
        assert image[middle, middle - right * step] == lung
        assert image[middle - down * step, middle] == lung
    # 10 mm of tissue are 10 mm on the picture.
    width = (axial[middle, middle - step + 8 : middle + step - 8] > (grey(30) + grey(-850)) / 2).sum()
    assert width * FIELD_MM / PIXELS == pytest.approx(10, abs=1.6)


def test_outside_the_scan_is_air(scan_with_balls):
    viewer = ScanViewer.open(scan_with_balls([], IDENTITY))
    axial, coronal, _ = (picture(plane) for plane in viewer.planes(np.array([40.0, 0.0, 50.0])))
    assert axial[PIXELS // 2, -1] == grey(-1000)
    assert axial[PIXELS // 2, 0] == grey(-850)
    assert coronal[0, PIXELS // 2] == grey(-1000)
    far_away = viewer.planes(np.array([500.0, 0.0, 0.0]))
    assert (picture(far_away[0]) == grey(-1000)).all()


def test_circles_are_cuts_of_the_sphere():
    middle = FIELD_MM / 2
    axial, coronal, sagittal = circles(np.zeros(3), np.array([10.0, 0.0, 3.0]), 10.0)
    assert (axial.x, axial.y, axial.radius) == (middle + 10, middle, 4.0)
    assert (coronal.x, coronal.y, coronal.radius) == (middle + 10, middle - 3, 5.0)
    assert sagittal is None, "that plane is 10 mm away from a nodule of 5 mm radius"
    assert circles(np.zeros(3), np.array([31.0, 0.0, 0.0]), 4.0)[0] is None, "outside the picture"
    assert circles(np.zeros(3), np.zeros(3), -1.0) == [None] * 3, "no known size"


def test_voxel_is_that_of_the_geometry(scan_with_balls):
    viewer = ScanViewer.open(scan_with_balls([(*CENTER, 3.0)], FLIPPED))
    index = voxel_of(viewer.geometry, CENTER)
    assert np.abs(viewer.geometry.index_to_world(np.array([index]))[0] - CENTER).max() <= 0.75
