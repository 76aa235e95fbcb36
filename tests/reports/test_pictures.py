"""Pictures of a place: the right slices, the right way round, in the right scale."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from luna_monai.predictions.outputs import to_image
from luna_monai.reports.pictures import FIELD_MM, PIXELS, WINDOW_HU, ball, draw_stacks
from luna_monai.scans.scan import read_scan

DIRECTIONS = {
    "as in LUNA16": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "flipped": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "turned": (0, 1, 0, 1, 0, 0, 0, 0, -1),
    "oblique": (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1),
}
CENTER = np.array([2.0, -4.0, 28.0])


def gray(hu):
    return round(255 * (hu - WINDOW_HU[0]) / (WINDOW_HU[1] - WINDOW_HU[0]))


def middle_slice(stack):
    """The slice through the middle as square pixels, 60 mm wide."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(stack["source"].split(",")[1]))).convert("L"))
    pixels = pixels.reshape(len(stack["positions"]), -1, PIXELS)[stack["middle"]]
    height = round(PIXELS * stack["height"] / FIELD_MM)
    return np.asarray(Image.fromarray(pixels).resize((PIXELS, height))).astype(int)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_planes_are_those_of_the_patient_for_any_orientation(scan_with_balls, name):
    # A large ball at the candidate, and small ones 12 mm to the patient's left, back and head of it.
    small = [(CENTER + 12 * np.eye(3)[axis]).tolist() for axis in range(3)]
    balls = [(*CENTER, 10.0), *((*place, 5.0) for place in small)]
    scan = read_scan(scan_with_balls(balls, DIRECTIONS[name]), orientation=None)
    stacks = draw_stacks(to_image(scan.voxels, scan.geometry), CENTER, ball(CENTER, 10.0))
    step = round(12 * PIXELS / FIELD_MM)
    half = (gray(30) + gray(-850)) / 2
    for stack, letters, down in zip(stacks, ("RLAP", "RLSI", "APSI"), (1, -1, -1), strict=True):
        image = middle_slice(stack)
        y, x = image.shape[0] // 2, PIXELS // 2
        assert stack["letters"] == letters
        assert image[y, x] == pytest.approx(gray(30), abs=8)
        assert image[y, x + step] > half > image[y, x - step]
        assert image[y + down * step, x] > half > image[y - down * step, x]
        # 10 mm of tissue are 10 mm on the picture, and so is the outline.
        assert (image[y, x - step + 8 : x + step - 8] > half).sum() * FIELD_MM / PIXELS == pytest.approx(10, abs=1.6)
        assert np.abs(stack["positions"][stack["middle"]] - CENTER).max() <= 0.75
        first, height = stack["middle"] * stack["height"], stack["height"]
        points = np.array(
            [[float(n) for n in pair.split()] for pair in stack["outline"].strip("MZ").replace("ZM", "L").split("L")]
        )
        inside = points[(points[:, 1] >= first) & (points[:, 1] < first + height)]
        distances = np.linalg.norm(inside - (FIELD_MM / 2, first + height / 2), axis=1)
        assert distances == pytest.approx(5, abs=1.1)


def test_outside_the_scan_is_air(scan_with_balls):
    scan = read_scan(scan_with_balls([], DIRECTIONS["as in LUNA16"]), orientation=None)
    axial, coronal, _ = map(middle_slice, draw_stacks(to_image(scan.voxels, scan.geometry), [40.0, 0.0, 50.0]))
    assert axial[PIXELS // 2, -5] == pytest.approx(gray(-1000), abs=3)
    assert axial[PIXELS // 2, 5] == pytest.approx(gray(-850), abs=3)
    assert coronal[5, PIXELS // 2] == pytest.approx(gray(-1000), abs=3)
