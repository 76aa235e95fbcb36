"""Names of files, comments and UIDs are text, whatever is in them, and a stranger's run executes no code."""

import ast
import json

import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from monai.bundle import ConfigParser

from luna_monai.apps import LunaEvaluateApp, LunaExportApp, LunaPredictApp, LunaTrainingApp
from luna_monai.errors import LunaError
from luna_monai.literals import literal, literals, text_of

TEXTS = [
    "plain", "out#7", "$open('PWNED','w')", "$1 + 1", "@network", "%train.yaml#fold", "50%dose", "a@b", "@#key",
    "%#key",
    "$'quoted' \"twice\" \\x23 \\", "ä#☃ 肺", "line\n#two", "C:\\data#1\\new", "::", "\udcff#", "$import os",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_monai_reads_exactly_the_text(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"text": literal(text), "list": literals([text, 1]), "copy": "@text", "used": "$len(@text)"}
    parser = ConfigParser(yaml.safe_load(yaml.safe_dump(config)))
    assert parser.get_parsed_content("text") == parser.get_parsed_content("copy") == text
    assert parser.get_parsed_content("list") == [text, 1]
    assert parser.get_parsed_content("used") == len(text)
    assert text_of(config["text"]) == text
    assert not list(tmp_path.iterdir())


def test_expressions_are_no_literals():
    assert [text_of(value) for value in ("$1 + 1", "$open('x')", "$['a']", "$", "@a", 3, None)] == [
        "$1 + 1", "$open('x')", "$['a']", "$", "@a", 3, None,
    ]  # fmt: skip
    assert ast.literal_eval(literal("$a")[1:]) == "$a"


@pytest.mark.parametrize("name", ["$open('PWNED','w')", "@network", "%x#y", "a#1"])
def test_names_of_scans_and_outputs(name, tmp_path, monkeypatch):
    folder = tmp_path / "here#1"
    folder.mkdir()
    monkeypatch.chdir(folder)
    image = sitk.GetImageFromArray(np.full((36, 60, 56), -900, np.int16))
    sitk.WriteImage(image, str(folder / "scan.nii.gz"))
    (folder / "scan.nii.gz").rename(folder / f"{name}.nii.gz")
    (folder / "points.csv").write_text("coordX,coordY,coordZ\n20,20,20\n")
    before = {path.name for path in folder.iterdir()}
    outputs = (f"{name}.json", f"{name}.csv", f"{name}.html")
    arguments = [f"{name}.nii.gz", "--candidates", "points.csv", "examine=null", "--report", outputs[2]]
    LunaPredictApp([*arguments, "--output", outputs[0], "--output", outputs[1]]).main()
    assert {path.name for path in folder.iterdir()} - before == set(outputs)
    assert json.loads((folder / outputs[0]).read_text())["scans"][0]["seriesuid"] == name


def test_a_run_in_folders_with_such_names(write_dataset, tmp_path, monkeypatch):
    folder = tmp_path / "h#1"
    dataset_dir = write_dataset(folder / "$luna", scans=2, candidates=12)
    monkeypatch.chdir(folder)
    comment = "$open('PWNED','w')"
    arguments = ["--dataset-dir", dataset_dir.name, "--cache-dir", "@cache_dir", "--output-dir", "%out#7"]
    arguments += ["--epochs", 1, "--batch-size", 8, "samples_per_epoch=8"]
    LunaTrainingApp([*arguments, "--tb-prefix", "a#b", comment]).main()
    assert {path.name for path in folder.iterdir()} == {"$luna", "@cache_dir", "%out#7"}
    assert all(path.name.endswith(comment) for path in (folder / "%out#7" / "runs" / "a#b").iterdir())
    LunaEvaluateApp(["%out#7"]).main()
    assert json.loads((folder / "%out#7/evaluation/metrics.json").read_text())["dataset_dir"] == str(dataset_dir)
    LunaTrainingApp([*arguments[:4], "output_dir=out#8", *arguments[6:]]).main()
    assert (folder / "out#8" / "model.pt").is_file()


@pytest.fixture(scope="module")
def run(write_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("strangers")
    dataset_dir = write_dataset(folder / "luna", scans=2, candidates=12)
    arguments = ["--dataset-dir", dataset_dir, "--cache-dir", folder / "cache", "--output-dir", folder / "run"]
    LunaTrainingApp([*arguments, "--epochs", 1, "--batch-size", 8, "samples_per_epoch=8", "precache_workers=0"]).main()
    return folder / "run"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fold", "$open('PWNED','w') and 0"),
        ("network_def#_target_", "os.mkdir"),
        ("network_def#_target_", "$open('PWNED','w')"),
        ("network_def#_mode_", "debug"),
        ("dataset_dir", "%other.yaml#code"),
        ("imports", ["$import os", "$import antigravity"]),
        ("split", [{"_target_": "os.mkdir", "path": "PWNED"}]),
        ("optimizer", {"_target_": "luna_monai.data.SeriesCache"}),  # known, but not in this place
    ],
)
def test_code_in_the_configuration_of_a_run_is_refused(run, tmp_path, monkeypatch, key, value):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    section, _, last = key.rpartition("#")
    (config[section] if section else config)[last] = value
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "run" / "model.pt").write_bytes((run / "model.pt").read_bytes())
    for app in (LunaEvaluateApp(["run"]), LunaExportApp(["run", "--format", "torchscript"])):
        with pytest.raises(LunaError, match=rf"run/config\.yaml: {section or key}.* is code that is not part of"):
            app.main()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_own_code_is_trusted_when_it_is_given(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["val_batch_size"] = "$2 * 64"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "model.pt").write_bytes((run / "model.pt").read_bytes())
    with pytest.raises(LunaError, match=r"val_batch_size: '\$2 \* 64' is code"):
        LunaEvaluateApp([tmp_path]).main()
    assert LunaEvaluateApp([tmp_path, "--config", tmp_path / "config.yaml"]).main() == 0
