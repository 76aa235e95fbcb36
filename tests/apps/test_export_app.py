"""Exporting by command."""

import json

import pytest
import torch
import yaml

import luna_monai.networks.exports
from luna_monai.apps import LunaEvaluateApp, LunaExportApp, LunaPredictApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, load_network
from luna_monai.networks.exports import FORMATS, export_network
from luna_monai.predictions import model_facts


@pytest.fixture
def run(repository, tmp_path):
    """Return the folder of a run whose network is not the default one."""
    folder = tmp_path / "run"
    folder.mkdir()
    config = yaml.safe_load((repository / "bundle" / "configs" / "train.yaml").read_text())
    config["network_def"]["conv_channels"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(1)
    network = LunaModel(conv_channels=2)
    network.tail_batchnorm.running_var.fill_(400.0**2)
    network.head_linear.weight.data /= 20  # logits of a few, not of hundreds
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


def test_a_run_and_its_evaluation(run, tmp_path, monkeypatch, make_dataset, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_app(LunaExportApp, [run, "--format", "torchscript"]) == 0
    shown = capsys.readouterr().out
    assert f"{run / 'model.ts'}: largest difference from PyTorch: " in shown
    options = ["--dataset-dir", make_dataset(scans=2), "--cache-dir", tmp_path / "cache", "--fold", "1"]
    LunaEvaluateApp([run, *options, "--output-dir", tmp_path / "eager"]).main()
    LunaEvaluateApp([run / "model.ts", *options, "--output-dir", tmp_path / "exported"]).main()
    eager, exported = ((tmp_path / name / "submission.csv").read_text() for name in ("eager", "exported"))
    assert eager == exported


def test_weights(run, tmp_path, capsys):
    output = tmp_path / "new folder" / "network.onnx"
    options = ["--format", "onnx", "--output", output]
    assert run_app(LunaExportApp, [run / "model.pt", *options, "network_def#conv_channels=2"]) == 0
    captured = capsys.readouterr()
    assert "largest difference" in captured.out
    assert captured.err == ""
    assert sorted(path.name for path in output.parent.iterdir()) == ["network.onnx"]
    network = load_network(run / "model.pt", LunaModel(conv_channels=2))
    candidates = torch.rand(3, 1, 32, 48, 48) * 2000 - 1000
    with torch.inference_mode():
        torch.testing.assert_close(load_network(output, network)(candidates), network(candidates), rtol=1e-5, atol=1e-5)


def test_an_export_is_not_exported(run, tmp_path, capsys):
    assert run_app(LunaExportApp, [run, "--format", "torchscript"]) == 0
    words = [run / "model.ts", "--format", "onnx", "--output", tmp_path / "x.onnx", "network_def#conv_channels=2"]
    capsys.readouterr()
    assert run_app(LunaExportApp, words) == 1
    error = capsys.readouterr().err
    assert "model.ts: cannot be read as weights" in error
    assert error.count("\n") == 1


def test_prediction(run, tmp_path, make_dataset):
    network = load_network(run / "model.pt", LunaModel(conv_channels=2))
    files = [run / "model.pt"]
    for form, suffix in FORMATS.items():
        files.append(tmp_path / f"model{suffix}")
        export_network(network, form, files[-1], {"weights_sha256": "1234"})
    scan = make_dataset(scans=1)
    found = []
    for weights in files:
        output = tmp_path / f"{weights.name}.json"
        options = ["--weights", weights, "--candidates", scan / "candidates.csv", "--output", output]
        assert run_app(LunaPredictApp, [scan, *options, "network_def#conv_channels=2"]) == 0
        found.append([one["probability"] for one in json.loads(output.read_text())["scans"][0]["candidates"]])
    assert max(found[0]) - min(found[0]) > 1e-3
    tolerance = 1e-3 if torch.cuda.is_available() else 1e-5  # convolutions on a GPU round to TensorFloat-32
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=tolerance)
    # Calibration and thresholds of the weights are those of their exports, and of nothing else.
    points = {"sensitivity": [{"wanted": 0.9, "threshold": 0.25}], "false_positives_per_scan": []}
    metadata = {"calibration": {"temperature": 2.0, "intercept": 0.5}, "thresholds": points, "weights_sha256": "1234"}
    facts = [model_facts(path, {"operating_points": metadata}) for path in files]
    assert [each.thresholds for each in facts] == [{}, *[{"sensitivity 0.9": 0.25}] * 2]


def test_an_export_with_other_probabilities_is_not_written(run, tmp_path, monkeypatch):
    def export_another(network, *rest):
        other = LunaModel(conv_channels=2)
        other.load_state_dict(network.state_dict())
        other.head_linear.bias.data += torch.tensor([0.0, 0.01])
        export_network(other, *rest)

    monkeypatch.setattr(luna_monai.networks.exports, "export_network", export_another)
    output = tmp_path / "model.ts"
    output.write_bytes(b"an earlier one")
    with pytest.raises(LunaError, match=r"model\.ts: not written; largest difference from PyTorch: .* more than 1e-05"):
        LunaExportApp([run, "--format", "torchscript", "--output", output]).main()
    assert output.read_bytes() == b"an earlier one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt", "--format", "onnx"], "nowhere.pt: no such file"),
        (["empty", "--format", "onnx"], "empty/config.yaml: No such file or directory"),
        (["run", "--format", "onnx", "--output", "model.ts"], "the file name must end with .onnx"),
        (["run", "--format", "torchscript", "fould=1"], "did you mean 'fold'?"),
        (["run/model.pt", "--format", "torchscript"], "weights of another network"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run_app(LunaExportApp, arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("luna-monai export: error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
