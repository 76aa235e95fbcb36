"""Exported networks say what the network itself says, and files that are none are named."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load_bundle_config
from monai.data import load_net_with_metadata

from luna_monai.data import CandidateDataset, SeriesCache, read_candidates, series_items
from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, load_network
from luna_monai.networks.exports import FORMATS, TOLERANCE, export_network, largest_differences
from luna_monai.networks.weights import FlipAverage, exported_metadata
from luna_monai.transforms import ClipIntensityRanged, CropCandidatesd, LoadScand

FORMS = list(FORMATS)
METADATA = {"version": "1.2.3", "name": "Lungenrundherde – größer"}


def make_network(seed=1):
    torch.manual_seed(seed)
    network = LunaModel()
    network.tail_batchnorm.running_mean.fill_(-500.0)
    network.tail_batchnorm.running_var.fill_(400.0**2)
    network.head_linear.weight.data *= 0.01  # probabilities that are neither 0 nor 1
    return network.eval()


def make_candidates(count):
    values = np.random.default_rng(count).integers(-1000, 1001, (count, 1, 32, 48, 48), dtype=np.int16)
    return torch.from_numpy(values).float()


@pytest.fixture(scope="module")
def network(repository):
    """Return a network: with the book's weights where they are at hand."""
    book = repository.parent / "shared" / "data" / "book" / "luna_model_2020.state"
    return load_network(book, LunaModel()) if book.is_file() else make_network()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """Return the files of each form, all with one name."""
    folder = tmp_path_factory.mktemp("exports")
    files = {form: folder / f"model{suffix}" for form, suffix in FORMATS.items()}
    for form, path in files.items():
        export_network(network, form, path, METADATA)
    return files


@pytest.mark.parametrize("form", FORMS)
def test_any_batch_size_gives_the_same(network, exported, form):
    other = load_network(exported[form], LunaModel())
    with torch.inference_mode():
        for count in (1, 2, 9):
            candidates = make_candidates(count)
            expected = network(candidates)
            for layout in (torch.contiguous_format, torch.channels_last_3d):
                logits = other(candidates.to(memory_format=layout))
                torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
            assert logits.abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_an_earlier_call_stay(exported, form):
    network = load_network(exported[form], LunaModel())
    with torch.inference_mode():
        first = network(make_candidates(2))
        before = first.clone()
        network(make_candidates(3))
    assert torch.equal(first, before)


@pytest.fixture(scope="module")
def real_crops(luna16_mini):
    """Return real candidates, all seven that are nodules among them."""
    candidates = read_candidates(luna16_mini)
    transforms = [
        LoadScand(keys="image"),
        CropCandidatesd(keys="image", spatial_size=(32, 48, 48)),
        ClipIntensityRanged(keys="image", a_min=-1000, a_max=1000),
    ]
    dataset = CandidateDataset(candidates, SeriesCache(series_items(candidates, luna16_mini), transforms, None))
    return dataset.read(range(16))["image"].float()


@pytest.mark.parametrize("form", FORMS)
def test_real_candidates(real_crops, network, exported, form):
    probability, logit = largest_differences(network, load_network(exported[form], LunaModel()), real_crops)
    assert probability <= TOLERANCE
    assert logit <= 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_metadata_inside(exported, form, tmp_path):
    assert exported_metadata(exported[form]).items() >= METADATA.items()
    plain = tmp_path / f"model{FORMATS[form]}"
    plain.write_bytes(b"damaged")
    assert exported_metadata(plain) == {}


def test_files_are_as_monais_ckpt_export_writes_them(exported, repository):
    assert {path.suffix for path in exported["onnx"].parent.iterdir()} == {".ts", ".onnx"}
    path = exported["torchscript"]
    _, metadata, extra = load_net_with_metadata(path, more_extra_files=["inference.json"])
    assert metadata["version"] == METADATA["version"]
    inference = ConfigParser.load_config_file(repository / "bundle" / "configs" / "inference.yaml")
    assert json.loads(extra["inference.json"]) == inference
    parser = load_bundle_config(str(path), "inference.json")
    assert parser.get("_meta_") == METADATA
    assert parser.get("network_def") == inference["network_def"]


def test_another_network_is_not_close(network, exported):
    other = load_network(exported["torchscript"], LunaModel())
    slightly = copy.deepcopy(network)
    slightly.head_linear.bias.data[1] += 1e-3
    candidates = make_candidates(3)
    assert largest_differences(network, other, candidates)[0] <= TOLERANCE
    assert largest_differences(slightly, other, candidates)[0] > TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["empty", "foreign", "truncated"])
def test_damaged_files(exported, tmp_path, capfd, form, damage):
    whole = exported[form].read_bytes()
    path = tmp_path / exported[form].name
    path.write_bytes({"empty": b"", "foreign": b"not a network at all", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(LunaError, match=rf"model\{path.suffix}: damaged, or not a network for candidates") as error:
        load_network(path, LunaModel())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600 + len(str(path))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", FORMATS.values())
def test_no_file(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(LunaError, match=r"does not exist|NO_SUCHFILE"):
        load_network(path, LunaModel())


def test_network_for_something_else(tmp_path):
    torch.jit.script(torch.nn.Linear(3, 2)).save(tmp_path / "linear.ts")
    with pytest.raises(LunaError, match=r"linear\.ts: damaged, or not a network for candidates of 32 x 48 x 48 voxels"):
        load_network(tmp_path / "linear.ts", LunaModel())
    torch.jit.script(torch.nn.Conv3d(1, 2, 3)).save(tmp_path / "conv.ts")
    with pytest.raises(
        LunaError, match=r"conv\.ts: .*must give 2 logits for a candidate, found shape \(1, 2, 30, 46, 46\)"
    ):
        load_network(tmp_path / "conv.ts", LunaModel())


def test_missing_package(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        LunaError, match=r"onnxruntime is required but not installed: pip install 'luna-monai\[export\]'"
    ):
        load_network(exported["onnx"], LunaModel())


def test_weights_go_into_the_network(tmp_path):
    torch.save(make_network(3).state_dict(), tmp_path / "model.pt")
    network_def = LunaModel()
    assert load_network(tmp_path / "model.pt", network_def) is network_def
    assert not network_def.training
    assert torch.equal(network_def.head_linear.weight, make_network(3).head_linear.weight)


def test_the_mean_over_flips_does_not_depend_on_the_flip(tmp_path):
    network = make_network()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    mean = load_network(tmp_path / "model.pt", LunaModel(), flips=True)
    crops = torch.rand(2, 1, 32, 48, 48) * 1000
    with torch.inference_mode():
        single, expected = network(crops), mean(crops)
        assert torch.softmax(single, dim=1)[:, 1].min() > 0.1
        assert not torch.allclose(network(crops.flip(2, 4)), single, atol=1e-3)
        torch.testing.assert_close(mean(crops.flip(2, 4)), expected)
        axes = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
        torch.testing.assert_close(expected, torch.stack([network(crops.flip(a)) for a in axes]).mean(dim=0))


def test_candidates_that_are_clearly_no_nodules_are_not_flipped():
    class Network(torch.nn.Module):
        seen = 0

        def forward(self, batch):
            self.seen += len(batch)
            return torch.stack([torch.zeros(len(batch)), batch[:, 0, 0, 0, 0]], dim=1)

    network = Network()
    crops = torch.zeros(5, 1, 32, 48, 48)
    crops[:, 0, 0, 0, 0] = torch.tensor([-3.0, 2.0, -2.9, -9.0, 0.0])  # probabilities 0.047, 0.88, 0.052, 0, 0.5
    with torch.inference_mode():
        margin = FlipAverage(network)(crops)[:, 1]
    torch.testing.assert_close(margin, torch.tensor([-3.0, 2 / 8, -2.9 / 8, -9.0, 0.0]))  # one pass of eight sees it
    assert network.seen == 5 + 7 * 3
