"""Heat maps of candidates: they show what makes the network say nodule, and where."""

import warnings

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM

from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, with_weights
from luna_monai.predictions import CandidateExplainer
from luna_monai.scans import find_scans, read_scan
from luna_monai.transforms import CropCandidates

SHAPE = (32, 48, 48)


class TwoSided(torch.nn.Module):
    """Says nodule for what is bright on the left, none for what is bright on the right."""

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


@pytest.mark.parametrize("method", ["grad_cam", "occlusion"])
def test_the_heat_is_where_the_evidence_is(two_balls, method):
    heat = CandidateExplainer(TwoSided(), method, target_layers=["relu"])(two_balls)
    assert heat.shape == (1, *SHAPE)
    assert heat.dtype == torch.float32
    assert (heat.min(), heat.max()) == (0, 1)
    peak = np.unravel_index(int(heat[0].argmax()), SHAPE)
    assert np.abs(np.subtract(peak, (16, 24, 10))).max() <= 5
    z, y, x = np.indices(SHAPE)
    near = torch.from_numpy(np.sqrt((z - 16) ** 2 + (y - 24) ** 2 + (x - 10) ** 2) <= 12)
    assert heat[0][near].sum() > 0.9 * heat.sum()
    assert heat[..., 24:].sum() < 0.02 * heat.sum()


def test_averaged_gradients_would_show_nothing(two_balls):
    # Why it is not MONAI's GradCAM itself: the two sides cancel.
    cam = GradCAM(TwoSided(), "relu", postprocessing=torch.nn.Identity())
    assert cam(two_balls, class_idx=1).abs().max() < 1e-6


def test_each_candidate_has_a_scale_of_its_own_and_nothing_stays_nothing(two_balls):
    faint = (two_balls + 1000) * 0.5 - 1000
    nothing = torch.full((1, 1, *SHAPE), -1000.0)
    explainer = CandidateExplainer(TwoSided(), target_layers=["relu"], batch_size=2)
    heat = explainer(torch.cat([two_balls, faint, nothing]))
    assert heat.amax(dim=(1, 2, 3)).tolist() == [1, 1, 0]
    assert explainer(two_balls[:0]).shape == (0, *SHAPE)


def test_the_network_stays_as_it_was():
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


def test_an_unknown_method_and_a_missing_layer():
    with pytest.raises(LunaError, match="explain_method must be grad_cam or occlusion, found 'lime'"):
        CandidateExplainer(LunaModel(), "lime")
    with pytest.raises(LunaError, match=r"layer 'block1\.relu2', which these weights do not show; use occlusion"):
        CandidateExplainer(torch.nn.Flatten())


def test_the_heat_is_on_real_nodules(golden, luna16_mini, shared_data):
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
    occlusion = CandidateExplainer(network, "occlusion")(image)[0].numpy()
    assert occlusion[distance <= 10].sum() / occlusion.sum() > 0.6
    assert distance.flat[occlusion.argmax()] < 7


def test_a_batch_is_explained_as_its_candidates_one_by_one():
    torch.manual_seed(1)
    explainer = CandidateExplainer(LunaModel())
    image = torch.randint(-1000, 400, (6, 1, *SHAPE), dtype=torch.int16)
    torch.testing.assert_close(explainer(image), torch.cat([explainer(one[None]) for one in image]), rtol=0, atol=1e-3)
