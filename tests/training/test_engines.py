"""What MONAI's engines get from us."""

import pytest
import torch
from monai.bundle import ConfigParser

from luna_monai.networks import LunaModel
from luna_monai.training import AutocastInferer, PrepareCandidateBatch, current_config, inferer, time_precisions


def test_batch_stays_int16_until_it_is_on_the_device():
    seen = []

    class Image:
        def to(self, *args, **kwargs):
            seen.append((args, kwargs))
            return torch.ones((2, 1, 32, 48, 48), dtype=torch.int16)

    image, label = PrepareCandidateBatch()({"image": Image(), "label": torch.tensor([0, 1])}, "cpu", non_blocking=True)
    assert seen == [(("cpu",), {"non_blocking": True})]
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last_3d)
    assert label.tolist() == [0, 1]


def test_augmentation_gets_the_float_batch():
    batch = {"image": torch.zeros((2, 1, 4, 4, 4), dtype=torch.int16), "label": torch.tensor([0, 1])}
    image, _ = PrepareCandidateBatch(augmentation=lambda image: image + 0.5)(batch, "cpu")
    assert (image == 0.5).all()


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_logits_are_float32_and_close_in_any_precision(precision):
    torch.manual_seed(0)
    network, image = LunaModel().eval(), torch.randn(4, 1, 32, 48, 48) * 500
    with torch.no_grad():
        expected = network(image)
        logits = AutocastInferer("cpu", precision)(image, network)
    assert logits.dtype == torch.float32
    tolerance = 0 if precision == "float32" else 0.05  # bfloat16 has 8 bits: 0.4 % at each layer
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6


def test_bfloat16_computes_in_bfloat16():
    seen = []

    def network(image):
        result = image @ image
        seen.append(result.dtype)
        return result

    AutocastInferer("cpu", "bfloat16")(torch.eye(4), network)
    AutocastInferer("cpu", "float32")(torch.eye(4), network)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.fixture
def with_bfloat16(monkeypatch):
    """Pretend that this processor has bfloat16, and let nothing be remembered."""
    monkeypatch.setattr(inferer, "is_bfloat16_fast", lambda device: True)
    monkeypatch.setattr(inferer, "_times", {})


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(0.1, 0.06, torch.bfloat16), (0.06, 0.1, torch.float32), (1, 1, torch.bfloat16)]
)
def test_the_faster_precision_is_chosen_once_and_named(with_bfloat16, monkeypatch, caplog, float32, bfloat16, chosen):
    caplog.set_level("INFO", logger="luna_monai")
    calls = []

    def timed(network, inputs):
        calls.append(len(inputs))
        return {"float32": float32, "bfloat16": bfloat16}

    monkeypatch.setattr(inferer, "time_precisions", timed)
    infer, network = AutocastInferer("cpu"), torch.nn.Linear(2, 2)
    infer(torch.zeros(5, 2), network)
    infer(torch.zeros(5, 2), network)
    assert (infer.dtype, calls) == (chosen, [5])
    (line,) = caplog.messages
    assert f"precision: {str(chosen).removeprefix('torch.')} on cpu" in line
    assert f"{1000 * float32:.1f} ms in float32 and {1000 * bfloat16:.1f} ms in bfloat16" in line


def test_timing_changes_nothing(with_bfloat16):
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(8), torch.nn.Dropout(), torch.nn.Linear(8, 2)
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = torch.randn(6, 2, 2, 2)
    random = torch.get_rng_state()
    for training in (True, False):
        assert min(time_precisions(network.train(training), inputs).values()) > 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_configured_precision_is_named(caplog):
    caplog.set_level("INFO", logger="luna_monai")
    AutocastInferer("cpu", "float32")
    assert caplog.messages == ["precision: float32 on cpu, as configured"]


def test_a_resumed_run_keeps_its_precision(with_bfloat16, monkeypatch):
    monkeypatch.setattr(inferer, "time_precisions", lambda *_: {"float32": 0.1, "bfloat16": 0.2})
    before, network = AutocastInferer("cpu"), torch.nn.Linear(2, 2)
    before(torch.zeros(5, 2), network)
    monkeypatch.setattr(inferer, "time_precisions", lambda *_: {"float32": 0.2, "bfloat16": 0.1})
    after = AutocastInferer("cpu")
    after.load_state_dict(before.state_dict())
    after(torch.zeros(5, 2), network)
    assert after.dtype == before.dtype == torch.float32
    demanded = AutocastInferer("cpu", "bfloat16")
    demanded.load_state_dict(before.state_dict())
    assert demanded.dtype == torch.bfloat16


def test_unknown_precision():
    with pytest.raises(ValueError, match="precision must be auto, bfloat16 or float32, found 'half'"):
        AutocastInferer("cpu", "half")


def test_current_config_is_merged_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = ConfigParser(
        {
            "imports": ["$from luna_monai.training import current_config"],
            "_meta_": {"version": "1"},
            "dataset_dir": "data/luna",
            "cache_dir": None,
            "output_dir": "$'a' + 'b'",
            "lr": 1,
            "recorded": "$current_config()",
        }
    )
    parser.update({"lr": 2})
    config = parser.get_parsed_content("recorded")
    assert config["lr"] == 2
    assert config["dataset_dir"] == str(tmp_path / "data" / "luna")
    assert (config["cache_dir"], config["output_dir"]) == (None, "$'a' + 'b'")
    assert "_meta_" not in config


def test_current_config_outside_a_configuration():
    with pytest.raises(RuntimeError, match="works only inside an expression"):
        current_config()
