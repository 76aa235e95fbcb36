"""What MONAI's engines get from us."""

import pytest
import torch

from luna_monai.networks import LunaModel
from luna_monai.training import AutocastInferer, PrepareCandidateBatch, has_bfloat16


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


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_precision_on_cpus(monkeypatch, caplog, capabilities, dtype):
    caplog.set_level("INFO", logger="luna_monai")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert AutocastInferer("cpu").dtype == dtype
    assert caplog.messages == [f"precision: {str(dtype).removeprefix('torch.')} on cpu (auto)"]


@pytest.mark.parametrize("supported", [True, False])
def test_auto_precision_on_gpus(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert has_bfloat16(torch.device("cuda")) is supported


def test_a_resumed_run_keeps_its_precision(monkeypatch):
    before = AutocastInferer("cpu", "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    after = AutocastInferer("cpu")
    assert after.dtype == torch.bfloat16
    after.load_state_dict(before.state_dict())
    assert after.dtype == torch.float32
