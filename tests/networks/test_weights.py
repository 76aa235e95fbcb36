"""Weights come from our files and the book's, and nothing else gets in."""

import pytest
import torch

from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, check_network, load_weights, with_weights


@pytest.fixture
def network():
    torch.manual_seed(1)
    return LunaModel()


@pytest.mark.parametrize("form", ["model", "checkpoint", "book"])
def test_all_forms(network, tmp_path, form):
    state = network.state_dict()
    content = {
        "model": state,
        "checkpoint": {"epoch": 1, "iteration": 3, "random": {}, "state": {"network": state, "best_epoch": {}}},
        "book": {"sys_argv": ["x"], "model_state": state, "model_name": "LunaModel", "epoch": 1},
    }[form]
    path = tmp_path / "weights"
    torch.save(content, path)
    loaded = load_weights(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    torch.manual_seed(2)
    other = LunaModel()
    assert with_weights(other, path) is other
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_none_changes_nothing(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert with_weights(network, None) is network
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_book(shared_data):
    network = with_weights(LunaModel(), shared_data / "book" / "luna_model_2020.state")
    assert network.tail_batchnorm.num_batches_tracked > 0


class Foreign:
    """Something whose loading would run code."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"no weights at all", "cannot be read as weights"),
        ({"epoch": 3, "loss": 0.1}, "holds no weights but a dict"),
        ([1, 2, 3], "holds no weights but a list"),
        ({}, "holds no weights but a dict"),
        (Foreign(), "cannot be read as weights"),
    ],
)
def test_foreign_files(tmp_path, capsys, content, message):
    path = tmp_path / "foreign.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(LunaError, match=message) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_truncated_file(network, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LunaError, match=r"model\.pt: cannot be read as weights"):
        load_weights(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(LunaError, match=r"\(No such file or directory\); expected"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(LunaError, match=r"\(Is a directory\); expected"):
        load_weights(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1j])
def test_numbers_that_are_no_weights(network, tmp_path, value):
    state = network.state_dict()
    state["block2.conv1.bias"] = torch.full((16,), value)
    torch.save({"model_state": state}, tmp_path / "diverged.state")
    with pytest.raises(
        LunaError, match=r"diverged\.state: block2\.conv1\.bias holds values that are not finite"
    ) as caught:
        with_weights(network, tmp_path / "diverged.state")
    assert "\n" not in str(caught.value)


def test_weights_of_a_network_that_is_trained_have_its_normalizations(tmp_path):
    network = LunaModel(batch_norm=True)
    torch.save(network.folded().state_dict(), tmp_path / "model.pt")
    torch.save(network.state_dict(), tmp_path / "norms.pt")
    with pytest.raises(LunaError, match=r"model\.pt: .*; set network_def#batch_norm as in the weights \(false for"):
        with_weights(network, tmp_path / "model.pt")
    with pytest.raises(LunaError, match="another network") as caught:
        with_weights(LunaModel(conv_channels=4, batch_norm=True), tmp_path / "norms.pt")
    assert "network_def#batch_norm" not in str(caught.value), "only the number of channels differs"
    assert with_weights(network.eval(), tmp_path / "model.pt").state_dict().keys() == LunaModel().state_dict().keys()


def test_other_network(network, tmp_path):
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "linear.pt")
    torch.save(LunaModel(conv_channels=4).state_dict(), tmp_path / "small.pt")
    for name, message in (
        ("linear", r'Missing key\(s\) in state_dict: "tail_batchnorm\.weight"'),
        ("small", r"size mismatch for block1\.conv1\.weight: .*\[4, 1, 3, 3, 3\]"),
    ):
        with pytest.raises(LunaError, match=rf"{name}\.pt: .*another network than LunaModel \(.*{message}") as caught:
            with_weights(network, tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_network_is_tried_before_it_is_used(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert check_network(network.train(), (32, 48, 48), "cpu") is network
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(LunaError, match="network_def: LunaModel cannot classify candidates of 8 x 48 x 48 voxels"):
        check_network(network, (8, 48, 48), "cpu")
    three = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3))
    with pytest.raises(LunaError, match=r"network_def: Sequential must give 2 logits .*, found shape \(1, 3\)"):
        check_network(three, (2, 2, 2), "cpu")
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):  # not the network
            check_network(network, (32, 48, 48), "cuda")
