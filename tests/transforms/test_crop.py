"""Candidates are cut where the book cuts them, for every direction of the scan's axes."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from luna_monai.errors import LunaError
from luna_monai.transforms import ClipIntensityRange, CropCandidates, CropCandidatesd, LoadScand

SIZE = (32, 48, 48)


def plain_crop(volume, center):
    """Cut one block by the rule of the book, in as few words as possible."""
    window = []
    for index, size, have in zip(center, SIZE, volume.shape, strict=True):
        start = int(round(index - size / 2))  # noqa: RUF046
        start = max(0, min(start, have - size))
        window.append(slice(start, start + size))
    return volume[tuple(window)]


def rotation(degrees):
    angle = np.deg2rad(degrees)
    cosine, sine = np.cos(angle), np.sin(angle)
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    return about_z @ about_x


DIRECTIONS = {
    "as LUNA16": np.eye(3),
    "flipped x and y": np.diag([-1.0, -1.0, 1.0]),
    "flipped z": np.diag([1.0, 1.0, -1.0]),
    "oblique": rotation(25),
    "oblique and flipped": rotation(25) @ np.diag([1.0, -1.0, -1.0]),
}


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_crops_equal_the_reference(tmp_path, direction):
    shape = (45, 70, 64)
    volume = np.random.default_rng(1).integers(-1200, 1200, shape, dtype=np.int16)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.703125, 0.703125, 2.5))
    image.SetOrigin((-166.0, -171.699997, -340.0))
    image.SetDirection(direction.ravel().tolist())
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(image, str(path))
    # The corners and faces of the volume, and points inside it.
    corners = itertools.product(*[(0, size // 2, size - 1) for size in shape])
    centers = np.array([*corners, (17, 30, 41), (16, 24, 24), (28, 45, 39)])
    points = [image.TransformIndexToPhysicalPoint([int(x), int(y), int(z)]) for z, y, x in centers]
    result = CropCandidatesd("image", SIZE)(LoadScand("image", None)({"image": str(path), "center_xyz": points}))
    assert "center_xyz" not in result
    np.testing.assert_array_equal(result["center_irc"], centers)
    assert result["image"].dtype == torch.int16
    assert type(result["image"]) is torch.Tensor
    for block, center in zip(result["image"], centers, strict=True):
        np.testing.assert_array_equal(block[0], plain_crop(volume, center))


def test_halves_are_rounded_to_even(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((40, 60, 60), dtype=np.int16))
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(image, str(path))
    points = [(20.5, 21.5, 10.5), (22.5, 23.5, 11.5)]
    result = CropCandidatesd("image", SIZE)(LoadScand("image")({"image": str(path), "center_xyz": points}))
    assert result["center_irc"].tolist() == [[10, 22, 20], [12, 24, 22]]


def test_volume_of_exactly_one_block():
    volume = torch.arange(32 * 48 * 48, dtype=torch.int32).to(torch.int16).reshape(1, *SIZE)
    blocks = CropCandidates(SIZE)(volume, np.array([[0, 0, 0], [31, 47, 47], [16, 24, 24]]))
    for block in blocks:
        torch.testing.assert_close(block, volume)


def test_blocks_share_no_memory_with_the_scan():
    volume = torch.zeros((1, 40, 60, 60), dtype=torch.int16)
    blocks = CropCandidates(SIZE)(volume, np.array([[20, 30, 30]]))
    blocks += 1
    assert volume.sum() == 0
    assert blocks.is_contiguous()
    assert blocks.untyped_storage().nbytes() == 32 * 48 * 48 * 2


def test_too_small_a_volume_and_a_centre_outside():
    with pytest.raises(LunaError, match=r"31 x 48 x 48 voxels \(z,y,x\) is smaller than the crop of 32 x 48 x 48"):
        CropCandidates(SIZE)(torch.zeros((1, 31, 48, 48)), np.array([[1, 1, 1]]))
    with pytest.raises(LunaError, match=r"voxel \(5, -1, 9\) \(z,y,x\) lies outside the volume"):
        CropCandidates(SIZE)(torch.zeros((1, 32, 48, 48)), np.array([[5, -1, 9]]))


def test_clipping_is_exact_for_every_integer():
    every = torch.arange(-32768, 32768).to(torch.int16)
    clipped = ClipIntensityRange(-1000, 1000)(every.clone())
    np.testing.assert_array_equal(clipped, every.numpy().clip(-1000, 1000))
    assert clipped.dtype == torch.int16


def test_clipping_rounds_fractions():
    values = torch.tensor([-1000.4, -0.5, 0.4, 1.5, 2.5, 5000.0])
    assert ClipIntensityRange(-1000, 1000)(values).tolist() == [-1000, 0, 0, 2, 2, 1000]


@pytest.mark.parametrize("name", ["flipped x and y", "flipped z", "oblique and flipped"])
def test_the_same_patient_gives_the_same_crops_however_the_scan_is_stored(tmp_path, name):
    volume = np.random.default_rng(1).integers(-1200, 1200, (45, 70, 64), dtype=np.int16)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((0.703125, 0.703125, 2.5))
    image.SetOrigin((-166.0, -171.699997, -340.0))
    flips = np.sign(np.diag(DIRECTIONS[name]))
    image.SetDirection((DIRECTIONS[name] @ np.diag(flips)).ravel().tolist())
    stored = image[:: int(flips[0]), :: int(flips[1]), :: int(flips[2])]
    points = [image.TransformIndexToPhysicalPoint(index) for index in ((10, 20, 30), (33, 35, 22), (60, 66, 2))]
    results = []
    for file, one in (("plain.mhd", image), ("flipped.mhd", stored)):
        sitk.WriteImage(one, str(tmp_path / file))
        item = LoadScand("image")({"image": str(tmp_path / file), "center_xyz": points})
        results.append(CropCandidatesd("image", SIZE)(item))
    np.testing.assert_array_equal(results[0]["center_irc"], results[1]["center_irc"])
    np.testing.assert_array_equal(results[0]["image"], results[1]["image"])
    np.testing.assert_array_equal(results[0]["image"][0, 0], plain_crop(volume, (30, 20, 10)))


def test_an_image_that_was_turned_since_or_comes_from_elsewhere_is_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((40, 60, 60), dtype=np.int16)), str(tmp_path / "scan.mhd"))
    item = LoadScand("image")({"image": str(tmp_path / "scan.mhd"), "center_xyz": [(1, 2, 3)]})
    item["image"].affine = item["image"].affine @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    with pytest.raises(LunaError, match="image: not a scan of LoadScand"):
        CropCandidatesd("image", SIZE)(item)
    with pytest.raises(LunaError, match="image: not a scan of LoadScand"):
        CropCandidatesd("image", SIZE)({"image": torch.zeros((1, 40, 60, 60)), "center_xyz": [(1, 2, 3)]})
