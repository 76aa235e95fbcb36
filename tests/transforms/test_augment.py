"""Augmentation moves candidates as far as it says, in the units it says, and leaves validation alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from luna_monai.training import PrepareCandidateBatch
from luna_monai.transforms import RandAugmentCandidates, resample_candidates

SHAPE = (32, 48, 48)


@pytest.fixture
def image():
    """Return one smooth candidate (1, 1, 32, 48, 48) without any symmetry."""
    noise = np.random.default_rng(0).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, 2)
    return torch.from_numpy((smooth / smooth.std() * 100).astype(np.float32))[None, None]


def resample(image, flip=(0, 0, 0), scale=1.0, rotate=0.0, shift=(0.0, 0.0, 0.0)):
    result = resample_candidates(
        image,
        flip=torch.tensor([flip], dtype=torch.bool).repeat(len(image), 1),
        scale=torch.full((len(image),), scale),
        rotate=torch.full((len(image),), rotate),
        shift=torch.tensor([shift]).repeat(len(image), 1),
    )
    assert result.shape == image.shape
    return result[0, 0].numpy()


def close(actual, expected, atol=0.05):
    np.testing.assert_allclose(actual, expected, atol=atol)


def test_nothing(image):
    close(resample(image), image[0, 0], atol=1e-2)


@pytest.mark.parametrize("flip", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_flip_is_of_z_y_x(image, flip):
    close(resample(image, flip=flip), np.flip(image[0, 0].numpy(), np.flatnonzero(flip)), atol=1e-2)


@pytest.mark.parametrize("shift", [(2.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, -1.5), (0.25, -2.5, 1.75)])
def test_shift_is_in_voxels_towards_higher_indices(image, shift):
    close(resample(image, shift=shift), ndimage.shift(image[0, 0].numpy(), shift, order=1, mode="nearest"))


def test_a_voxel_goes_where_it_should():
    point = torch.zeros(1, 1, *SHAPE)
    point[0, 0, 10, 20, 30] = 1
    moved = resample(point, shift=(1.0, 2.0, 3.0))
    assert np.unravel_index(moved.argmax(), SHAPE) == (11, 22, 33)


def test_rotation_is_from_x_towards_y(image):
    point = torch.zeros(1, 1, *SHAPE)
    point[0, 0, 10, 24, 40] = 1  # 0.5 voxels from the centre along y, 16.5 along x
    turned = resample(point, rotate=90.0)
    assert np.unravel_index(turned.argmax(), SHAPE) == (10, 40, 23)
    close(resample(image, rotate=90.0), np.rot90(image[0, 0].numpy(), -1, axes=(1, 2)))


@pytest.mark.parametrize("degrees", [10.0, -33.0, 135.0])
def test_rotation_is_in_degrees_within_slices(image, degrees):
    # scipy turns the other way: from the y axis towards the x axis.
    expected = ndimage.rotate(image[0, 0].numpy(), -degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
    close(resample(image, rotate=degrees), expected)


@pytest.mark.parametrize("scale", [1.25, 0.8])
def test_scale_is_how_much_larger_things_become(image, scale):
    center = (np.array(SHAPE) - 1) / 2
    expected = ndimage.affine_transform(
        image[0, 0].numpy(), np.eye(3) / scale, center - center / scale, order=1, mode="nearest"
    )
    close(resample(image, scale=scale), expected)
    block = torch.zeros(1, 1, *SHAPE)
    block[0, 0, 12:20, 16:32, 16:32] = 1
    assert resample(block, scale=scale).sum() == pytest.approx(8 * 16 * 16 * scale**3, rel=0.05)


def test_order_is_flip_scale_rotate_shift(image):
    array = image[0, 0].numpy()
    center = (np.array(SHAPE) - 1) / 2
    cos, sin = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    rotation = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])  # z, y, x: x towards y
    forward = rotation @ np.diag([1.1, 1.1, -1.1])
    inverse = np.linalg.inv(forward)
    shift = np.array([1.0, -2.0, 3.0])
    expected = ndimage.affine_transform(array, inverse, center - inverse @ (center + shift), order=1, mode="nearest")
    close(resample(image, flip=(0, 0, 1), scale=1.1, rotate=30.0, shift=tuple(shift.tolist())), expected)


def test_each_candidate_gets_its_own(image):
    batch = image.repeat(2, 1, 1, 1, 1)
    both = resample_candidates(
        batch,
        flip=torch.zeros(2, 3, dtype=torch.bool),
        scale=torch.ones(2),
        rotate=torch.zeros(2),
        shift=torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]),
    )
    close(both[0, 0], image[0, 0], atol=1e-2)
    close(both[1, 0, :, :, 4:], image[0, 0, :, :, 2:-2], atol=1e-2)


def test_all_strengths_zero_is_the_identity(image):
    augment = RandAugmentCandidates(flip=False)
    state = torch.get_rng_state()
    assert torch.equal(augment(image), image)
    assert torch.equal(torch.get_rng_state(), state)


def test_flips_alone_are_exact_and_each_axis_is_flipped_half_of_the_time(image):
    torch.manual_seed(0)
    array = image[0, 0].numpy()
    flips = list(np.ndindex(2, 2, 2))
    expected = {np.flip(array, np.flatnonzero(axes)).tobytes(): np.array(axes) for axes in flips}
    augmented = RandAugmentCandidates()(image.repeat(200, 1, 1, 1, 1)).numpy()
    seen = np.array([expected[candidate[0].tobytes()] for candidate in augmented])
    assert np.all(np.abs(seen.mean(axis=0) - 0.5) < 0.12)
    assert len(np.unique(seen, axis=0)) == 8


@pytest.mark.parametrize(
    ("strength", "value", "measure", "largest"),
    [
        ("shift", 3.0, lambda given: given["shift"], 3.0),
        ("scale", 0.1, lambda given: given["scale"] - 1, 0.1),
        ("rotate", 30.0, lambda given: given["rotate"], 30.0),
    ],
)
def test_strengths_are_limits_to_both_sides(monkeypatch, strength, value, measure, largest):
    given = {}
    monkeypatch.setattr(
        "luna_monai.transforms.augment.resample_candidates", lambda image, **values: given.update(values) or image
    )
    torch.manual_seed(0)
    RandAugmentCandidates(flip=False, **{strength: value})(torch.zeros(500, 1, 1, 1, 1))
    drawn = measure(given)
    assert drawn.abs().max() <= largest + 1e-6
    assert drawn.max() > 0.95 * largest
    assert drawn.min() < -0.95 * largest
    assert drawn.mean().abs() < 0.1 * largest
    assert not given["flip"].any()
    for name, neutral in (("shift", 0.0), ("scale", 1.0), ("rotate", 0.0)):
        if name != strength:
            assert (given[name] == neutral).all()


def test_offset_and_noise_are_in_hu():
    torch.manual_seed(0)
    zeros = torch.zeros(400, 1, 4, 8, 8)
    shifted = RandAugmentCandidates(flip=False, offset=20.0)(zeros)
    assert (shifted.amax(dim=(1, 2, 3, 4)) == shifted.amin(dim=(1, 2, 3, 4))).all()
    assert 19 < shifted.abs().max() <= 20
    assert shifted.min() < 0 < shifted.max()
    noisy = RandAugmentCandidates(flip=False, noise=50.0)(zeros)
    deviation = noisy.std(dim=(1, 2, 3, 4))
    assert 45 < deviation.max() < 60  # of 256 voxels, within 10 % or so
    assert deviation.min() < 5
    assert noisy.mean().abs() < 1


def test_noise_of_a_scanner_is_as_strong_and_is_not_white():
    torch.manual_seed(0)
    zeros = torch.zeros(200, 1, 8, 24, 24)
    white, textured = (RandAugmentCandidates(flip=False, noise=50.0, correlated=c)(zeros) for c in (False, True))
    assert 45 < textured.std(dim=(1, 2, 3, 4)).max() < 60
    assert textured.mean().abs() < 1

    def neighbors(noise, axis):
        ahead, behind = noise.narrow(axis, 1, 23), noise.narrow(axis, 0, 23)
        return float((ahead * behind).mean() / noise.square().mean())

    assert abs(neighbors(white, 4)) < 0.02
    assert neighbors(textured, 4) > neighbors(textured, 3) > 0.1


def test_kernels_and_thick_slices_change_edges_alone():
    torch.manual_seed(0)
    step = torch.zeros(300, 1, 16, 16, 16)
    step[..., 8:] = 100
    sharpened = RandAugmentCandidates(flip=False, sharpen=1.0)(step)
    assert torch.allclose(sharpened[..., :6], step[..., :6], atol=1e-3)
    assert sharpened[..., 8].max() > 120
    assert sharpened[..., 8].min() < 80
    across = step.movedim(4, 2)
    thick = RandAugmentCandidates(flip=False, thicken=0.3)(across)
    assert torch.allclose(thick[:, :, 10:], across[:, :, 10:], atol=1e-3)
    assert thick[:, :, 8].min() == pytest.approx(70, abs=2)
    assert thick[:, :, 8].max() <= 100 + 1e-3


def test_stretch_is_along_z_alone(image):
    given = {"flip": torch.zeros(1, 3, dtype=torch.bool), "shift": torch.zeros(1, 3), "rotate": torch.zeros(1)}
    stretched = resample_candidates(image, scale=torch.ones(1), stretch=torch.full((1,), 1.3), **given)
    scaled = resample_candidates(image, scale=torch.full((1,), 1.3), **given)
    plain = resample_candidates(image, scale=torch.ones(1), **given)
    assert not torch.allclose(stretched[0, 0, :, 24, 24], plain[0, 0, :, 24, 24], atol=1)
    middle = scaled[0, 0, 15:17].mean(dim=0)
    assert not torch.allclose(stretched[0, 0, 15:17].mean(dim=0), middle, atol=1)
    assert torch.allclose(stretched[0, 0, 15:17].mean(dim=0), plain[0, 0, 15:17].mean(dim=0), atol=30)


def test_result_stays_in_range_and_keeps_type_and_memory_format():
    torch.manual_seed(0)
    augment = RandAugmentCandidates(shift=3, scale=0.1, rotate=180, offset=20, noise=20)
    batch = torch.where(torch.rand(4, 2, *SHAPE) < 0.5, -1000.0, 1000.0)
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        result = augment(batch.contiguous(memory_format=memory_format))
        assert result.is_contiguous(memory_format=memory_format)
        assert (result.dtype, result.shape) == (torch.float32, batch.shape)
        assert (result.min(), result.max()) == (-1000, 1000)


def test_seed_decides(image):
    augment = RandAugmentCandidates(shift=3, scale=0.1, rotate=180, offset=20, noise=20)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(image))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_only_training_is_augmented(image):
    batch = {"image": image.to(torch.int16), "label": torch.ones(1, dtype=torch.int64)}
    augment = RandAugmentCandidates(flip=False, offset=100.0)
    trained, _ = PrepareCandidateBatch(augment)(batch, "cpu")
    validated, _ = PrepareCandidateBatch()(batch, "cpu")
    assert torch.equal(validated, batch["image"].float())
    assert not torch.equal(trained, validated)
