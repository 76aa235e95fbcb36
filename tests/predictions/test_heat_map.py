"""Attribution maps: where the evidence is, and in the space of the scan as other programs read it."""

import dataclasses
import warnings

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.visualize import GradCAM

from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, with_weights
from luna_monai.networks.weights import FlipAverage
from luna_monai.predictions import CandidateExplainer, ScanExplanation
from luna_monai.predictions.outputs import write_label_map
from luna_monai.predictions.scan_dataset import pad_with_air
from luna_monai.scans import find_scans, orient, read_scan
from luna_monai.scans.geometry import Geometry
from luna_monai.transforms import CropCandidates

from .conftest import make_prediction

SHAPE = (32, 48, 48)


class TwoSided(torch.nn.Module):
    """A network whose logit of a nodule is the brightness on the left, and of no nodule that on the right."""

    def __init__(self):
        super().__init__()
        self.pool = torch.nn.AvgPool3d(4)
        self.scale = torch.nn.Conv3d(1, 1, 1)
        self.relu = torch.nn.ReLU()
        self.head = torch.nn.Linear(8 * 12 * 12, 2, bias=False)
        side = torch.ones((8, 12, 12))
        side[..., 6:] = -1
        with torch.no_grad():
            self.scale.weight[:] = 1e-3
            self.scale.bias[:] = 0.8
            self.head.weight[:] = torch.stack([-side.flatten(), side.flatten()])

    def forward(self, image):
        return self.head(self.relu(self.scale(self.pool(image))).flatten(1))


@pytest.fixture
def two_balls():
    """Air with two equal balls, 10 voxels wide: at (16, 24, 10) and (16, 24, 38)."""
    image = torch.full((1, 1, *SHAPE), -1000.0)
    z, y, x = np.indices(SHAPE)
    for column in (10, 38):
        ball = (z - 16) ** 2 + (y - 24) ** 2 + (x - column) ** 2 <= 25
        image[0, 0][torch.from_numpy(ball)] = 100.0
    return image


def test_the_map_is_high_at_the_evidence(two_balls):
    heat = CandidateExplainer(TwoSided(), target_layers=["relu"])(two_balls)
    assert heat.shape == (1, *SHAPE)
    assert heat.dtype == torch.float32
    assert (heat.min(), heat.max()) == (0, 1)
    peak = np.unravel_index(int(heat[0].argmax()), SHAPE)
    assert np.abs(np.subtract(peak, (16, 24, 10))).max() <= 5
    z, y, x = np.indices(SHAPE)
    near = torch.from_numpy(np.sqrt((z - 16) ** 2 + (y - 24) ** 2 + (x - 10) ** 2) <= 12)
    assert heat[0][near].sum() > 0.9 * heat.sum()
    assert heat[..., 24:].sum() < 0.02 * heat.sum()


def test_plain_grad_cam_does_not_localize(two_balls):
    # Why it is not MONAI's GradCAM itself: the two sides cancel.
    cam = GradCAM(TwoSided(), "relu", postprocessing=torch.nn.Identity())
    assert cam(two_balls, class_idx=1).abs().max() < 1e-6


def test_each_map_is_normalized_and_zero_maps_stay_zero(two_balls):
    faint = (two_balls + 1000) * 0.5 - 1000
    nothing = torch.full((1, 1, *SHAPE), -1000.0)
    explainer = CandidateExplainer(TwoSided(), target_layers=["relu"])
    heat = explainer(torch.cat([two_balls, faint, nothing]))
    assert heat.amax(dim=(1, 2, 3)).tolist() == [1, 1, 0]
    assert explainer(two_balls[:0]).shape == (0, *SHAPE)


def test_the_network_is_not_changed():
    torch.manual_seed(0)
    network = LunaModel().requires_grad_(False)
    image = torch.randint(-1000, 400, (2, 1, *SHAPE)).float()
    before = network.eval()(image)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        CandidateExplainer(network)(image.to(torch.int16))
    assert torch.equal(network(image), before)
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert network.block2.relu2.inplace
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_the_map_with_flips_is_that_of_the_network():
    torch.manual_seed(0)
    network, image = LunaModel().eval(), torch.randint(-1000, 400, (1, 1, *SHAPE)).float()
    assert torch.equal(CandidateExplainer(FlipAverage(network))(image), CandidateExplainer(network)(image))


def test_a_missing_layer():
    with pytest.raises(LunaError, match=r"needs the layer 'block1\.norm2' of LunaModel; give weights as .pt"):
        CandidateExplainer(torch.nn.Flatten())


def test_the_map_is_high_at_real_nodules(golden, luna16_mini, shared_data):
    network = with_weights(LunaModel(), shared_data / "book" / "luna_model_2020.state")
    scans = {uid: read_scan(path) for uid, path in find_scans(luna16_mini).items()}
    shares, peaks = [], []
    for row in np.flatnonzero(golden["is_nodule"]):
        scan = scans[golden["seriesuid"][row]]
        voxels, geometry = scan.voxels, scan.geometry
        center = golden["center_irc"][row]
        image = CropCandidates(SHAPE)(torch.from_numpy(np.array(voxels))[None], center[None]).clamp(-1000, 1000)
        start = np.clip(np.round(center - np.array(SHAPE) / 2), 0, np.subtract(geometry.shape, SHAPE))
        offsets = (np.moveaxis(np.indices(SHAPE), 0, -1) + start - center) * geometry.spacing[::-1]
        distance = np.linalg.norm(offsets, axis=-1)
        assert 0.03 < (distance <= 10).mean() < 0.06, "what the share would be of a heat map that says nothing"
        heat = CandidateExplainer(network)(image)[0].numpy()
        shares.append(heat[distance <= 10].sum() / heat.sum())
        peaks.append(distance.flat[heat.argmax()])
    assert len(shares) == 7
    assert np.mean(shares) > 0.17
    assert np.median(peaks) < 7


def bright(image):
    """Explain a candidate by what is brighter than water in it."""
    return (image[:, 0] > 0).float()


#: Axes of the file in other orders and directions, one scan smaller than what is cut out.
DIRECTIONS = {
    "as in LUNA16": (np.eye(3), (56, 52, 36)),
    "supine the other way round": (np.diag([-1.0, -1.0, 1.0]), (56, 52, 36)),
    "sagittal slices": (np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (52, 40, 60)),
    "small": (np.diag([1.0, -1.0, -1.0]), (40, 30, 20)),
}


@pytest.mark.parametrize("case", DIRECTIONS)
def test_volumes_have_the_geometry_of_the_file(case, tmp_path):
    """The attribution map, and the outline of a finding."""
    direction, size = DIRECTIONS[case]
    geometry = Geometry(size, (0.7, 0.8, 1.25), (-20.0, 35.5, -100.25), tuple(map(tuple, direction.tolist())))
    voxels = np.full(geometry.shape, -850, dtype=np.int16)
    # A shape that no flip or turn leaves as it is.
    voxels[8:14, 10:13, 20:22] = 50
    voxels[8, 10:18, 20] = 60
    seen, grid = pad_with_air(*orient(voxels, geometry), SHAPE)
    prediction = make_prediction(geometry, [(10, 11, 21), (0, 0, 0)], [0.9, 0.5])
    finding = dataclasses.replace(prediction.findings[0], outline=seen > 0, outline_start=(0, 0, 0))
    prediction = dataclasses.replace(prediction, findings=(finding, prediction.findings[1]), grid=grid)
    path = tmp_path / "new" / "heat.nii.gz"
    image = torch.from_numpy(np.array(seen))[None]
    values = ScanExplanation(path, bright, spatial_size=SHAPE, smoothing_mm=0)(prediction, image, grid)
    np.testing.assert_array_equal(values, np.where(seen > 0, 255, 0))
    write_label_map(tmp_path / "outline.nrrd", prediction)
    for name, value in (("new/heat.nii.gz", 255), ("outline.nrrd", 1)):
        for_itk = sitk.ReadImage(str(tmp_path / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(for_itk), np.where(voxels > 0, value, 0))
        assert for_itk.GetSpacing() == pytest.approx(geometry.spacing)
        assert for_itk.GetOrigin() == pytest.approx(geometry.origin, abs=1e-4)
        assert for_itk.GetDirection() == pytest.approx(direction.ravel(), abs=1e-6)
    for_nibabel = nibabel.load(path)
    ras = for_nibabel.affine @ (20, 17, 8, 1)
    assert ras[:3] * (-1, -1, 1) == pytest.approx(geometry.index_to_world(np.array([(8, 17, 20)]))[0], abs=1e-3)
    assert for_nibabel.get_data_dtype() == np.uint8


def test_overlapping_maps_use_the_higher_value_and_other_findings_have_none(geometry, voxels, tmp_path):
    strengths = iter([0.5, 1.0])

    def explainer(candidates):
        return torch.stack([bright(one[None])[0] * next(strengths) for one in candidates])

    prediction = make_prediction(geometry, [(12, 20, 34), (13, 21, 35), (30, 2, 2)], [0.9, 0.8, 0.7])
    explain = ScanExplanation(tmp_path / "a.nii", explainer, max_findings=2, spatial_size=SHAPE, smoothing_mm=0)
    values = explain(prediction, torch.from_numpy(voxels)[None], geometry)
    np.testing.assert_array_equal(values, np.where(voxels > 0, 255, 0))
    explain = ScanExplanation(tmp_path / "b.nii", bright, spatial_size=SHAPE, smoothing_mm=0)
    nothing = explain(make_prediction(geometry, [], []), torch.from_numpy(voxels)[None], geometry)
    assert not nothing.any()


def test_maps_are_smoothed(geometry, voxels, tmp_path):
    def explainer(candidates):
        heat = torch.zeros((len(candidates), *SHAPE))
        heat[:, 16, 24, 24] = 1  # all of the contribution is in one voxel
        return heat

    explain = ScanExplanation(tmp_path / "a.nii", explainer, spatial_size=SHAPE)
    values = explain(make_prediction(geometry, [(18, 26, 28)], [0.9]), torch.from_numpy(voxels)[None], geometry)
    assert values.max() == 255
    extents = (np.ptp(np.argwhere(values > 64), axis=0) + 1) * geometry.spacing[::-1]
    # A Gaussian of 1.5 mm is above a quarter of its maximum in a ball of 5 mm.
    np.testing.assert_allclose(extents, 5, atol=1.3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heat.mhd", r"must end with \.nii\.gz or \.nii or \.nrrd"),
        (".nii.gz", r"must end with \.nii\.gz"),
        ("folder.nii", r"folder\.nii: is a folder"),
    ],
)
def test_bad_names(name, message, tmp_path):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(LunaError, match=message):
        ScanExplanation(tmp_path / name, bright)
