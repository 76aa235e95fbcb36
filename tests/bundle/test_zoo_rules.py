"""What the MONAI Model Zoo checks before it takes a bundle, and the bundle's documented commands."""

import importlib.metadata
import json
import math
import re
import shlex
import shutil
import sys
from pathlib import Path

import fire
import jsonschema
import mlflow
import monai.bundle.__main__
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.bundle.properties import InferProperties, MetaProperties, TrainProperties
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType
from monai.fl.utils.exchange_object import ExchangeObject

import luna_monai
from luna_monai.networks import LunaModel, load_network

#: Sections of the zoo's READMEs.
SECTIONS = (
    "# Model Overview", "## Data", "### Preprocessing", "## Training configuration", "### Input", "### Output",
    "## Performance", "## MONAI Bundle Commands", "# References", "# License",
)  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(repository):
    """Return the pretrained weights."""
    return repository / "bundle" / "models" / "model.pt"


@pytest.fixture(scope="module")
def metadata(repository):
    """Return the content of metadata.json."""
    return json.loads((repository / "bundle" / "configs" / "metadata.json").read_text())


@pytest.fixture(scope="module")
def schema(repository):
    """Return the schema of metadata.json."""
    return json.loads((repository / "bundle" / "configs" / "metadata_schema.json").read_text())


@pytest.mark.parametrize("name", ["configs/metadata.json", "configs/logging.conf", "LICENSE", "docs/README.md"])
def test_necessary_files(repository, name):
    assert (repository / "bundle" / name).stat().st_size > 0


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "multi_gpu_train"])
def test_preferred_configurations(repository, name):
    assert (repository / "bundle" / "configs" / f"{name}.yaml").is_file()


def test_weights_are_small_and_safe_to_load(pretrained):
    assert pretrained.stat().st_size <= 2_000_000
    state = torch.load(pretrained, weights_only=True)
    LunaModel().load_state_dict(state)  # nothing but the network's state, as the zoo's tools expect
    assert all(torch.isfinite(value).all() for value in state.values())


def test_version_is_in_the_changelog(metadata):
    assert metadata["version"] in metadata["changelog"]
    assert metadata["version"] == luna_monai.__version__ == importlib.metadata.version("luna-monai")


def test_versions_are_the_tested_ones(repository, metadata, project):
    text = (repository / "constraints.txt").read_text()
    tested = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)}
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    named |= metadata["required_packages_version"]
    needed = [re.split(r"[^\w.-]", text)[0] for text in project["dependencies"]]
    assert named == {name: tested[name] for name in needed} | {"luna-monai": metadata["version"]}


def test_monai_loads_the_network_of_the_bundle(repository, pretrained):
    network = monai.bundle.load("bundle", model=LunaModel(), source="local", bundle_dir=str(repository))
    expected = torch.load(pretrained, weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_the_readme_says_what_hugging_face_needs(repository):
    text = (repository / "bundle" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("apache-2.0", "monai")
    assert front["tags"]


def test_metadata_have_the_required_facts(metadata):
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["format"], image["modality"], image["value_range"]) == ("hounsfield", "CT", [-1000, 1000])
    assert "Not for clinical use" in metadata["intended_use"]
    assert len(metadata["references"]) >= 2
    assert metadata["data_source"]


def test_metrics_were_measured(pretrained, metadata):
    assert metadata["eval_metrics"]
    assert all(math.isfinite(value) for value in metadata["eval_metrics"].values())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: content.pop("authors"),
        lambda content: content.update(version=1),
        lambda content: content.update(numpy_version="newest"),
        lambda content: content.update(changelog={}),
        lambda content: content.update(eval_metrics={"roc_auc": "0.9"}),
        lambda content: content.pop("required_packages_version"),
        lambda content: content["network_data_format"].pop("outputs"),
        lambda content: content["network_data_format"]["inputs"]["image"].pop("is_patch_data"),
        lambda content: content["network_data_format"]["inputs"]["image"].update(value_range=[0]),
        lambda content: content["network_data_format"]["inputs"]["image"].update(spatial_shape=[0, 48, 48]),
        lambda content: content["network_data_format"]["inputs"]["image"].update(channel_def={"first": "image"}),
    ],
)
def test_schema_finds_mistakes(metadata, schema, break_it):
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(metadata, schema)
    broken = json.loads(json.dumps(metadata))
    break_it(broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_schema_takes_the_example_of_the_specification(schema):
    tensor = {
        "type": "image", "format": "magnitude", "modality": "MR", "num_channels": 1, "dtype": "float32",
        "spatial_shape": ["2**n", "*", 160], "value_range": [], "is_patch_data": False, "channel_def": {"0": "image"},
    }  # fmt: skip
    text = ("task", "description", "authors", "copyright")
    content = dict.fromkeys(text, "spleen segmentation")
    content |= {"version": "0.1.0", "monai_version": "0.8.0", "pytorch_version": "1.10.0", "numpy_version": "1.21.2"}
    content |= {"optional_packages_version": {"nibabel": "3.2.1"}}
    jsonschema.validate(content | {"network_data_format": {"inputs": {"a": tensor}, "outputs": {"b": tensor}}}, schema)


def test_readme_has_the_zoos_sections(repository):
    lines = (repository / "bundle" / "docs" / "README.md").read_text().splitlines()
    assert [line for line in lines if line in SECTIONS] == list(SECTIONS)
    assert (repository / "bundle" / "docs" / "data_license.txt").read_text().strip()


@pytest.fixture
def copied_bundle(repository, tmp_path, monkeypatch, write_dataset):
    """Return a copy of the bundle in a folder of its own, with weights and data, as the working directory."""
    folder = tmp_path / "lung_nodule_classification"
    shutil.copytree(repository / "bundle", folder)
    (folder / "models").mkdir(exist_ok=True)
    if not (folder / "models" / "model.pt").exists():
        torch.save(LunaModel().state_dict(), folder / "models" / "model.pt")
    write_dataset(folder / "luna", scans=2, candidates=12)
    monkeypatch.chdir(folder)
    return folder


def run_command(words, **options):
    """Run ``python -m monai.bundle ...`` in this process, its command line read as MONAI reads it."""
    assert words[:3] == ["python", "-m", "monai.bundle"]
    more = [f"--{name}={value}" for name, value in options.items()]
    fire.Fire(vars(monai.bundle.__main__), command=[*words[3:], *more])


# MONAI says of every configuration that it may run code; torch's exporter warns about torch.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore:.*LeafSpec:FutureWarning")
def test_documented_commands(copied_bundle, sqlite_uri):
    text = (copied_bundle / "docs" / "README.md").read_text()
    commands = [
        shlex.split(line)
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    kinds = []
    for words in commands:
        if words[0] == "torchrun":  # tests/end_to_end runs torchrun with these files
            continue
        kinds.append(words[3])
        options = {"max_epochs": 1, "samples_per_epoch": 8, "batch_size": 8} if "training" in words else {}
        run_command(words, **options)
    assert set(kinds) == {
        "run", "run_workflow", "verify_metadata", "verify_net_in_out", "ckpt_export", "onnx_export",
    }  # fmt: skip
    assert (copied_bundle / "output" / "model.pt").is_file()
    assert (copied_bundle / "evaluation" / "metrics.json").is_file()
    client = mlflow.MlflowClient(sqlite_uri(copied_bundle / "tracked" / "mlruns.db"))
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert {"trn/loss/all", "val/loss/all"} <= run.data.metrics.keys()
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"config.yaml", "metrics.csv", "model.pt"}
    assert len((copied_bundle / "predictions.csv").read_text().splitlines()) == 25
    assert json.loads((copied_bundle / "predictions.json").read_text())
    network = load_network("models/model.pt", LunaModel())
    candidates = torch.rand(3, 1, 32, 48, 48) * 2000 - 1000
    with torch.inference_mode():
        for name in ("model.ts", "model.onnx"):
            other = load_network(copied_bundle / "models" / name, LunaModel())
            torch.testing.assert_close(other(candidates), network(candidates), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "properties"), [("train", TrainProperties), ("infer", InferProperties)], ids=["train", "infer"]
)
def test_properties_that_applications_ask_for(copied_bundle, kind, properties):
    name, options = {
        "train": ("train", {"dataset_dir": "luna"}),
        "infer": ("inference", {"scan": "luna", "candidates": "luna/candidates.csv", "output": "predictions.json"}),
    }[kind]
    workflow = ConfigWorkflow(
        config_file=f"configs/{name}.yaml",
        meta_file="configs/metadata.json",
        logging_file=False,
        workflow_type=kind,
        **options,
    )
    workflow.properties = {**MetaProperties, **properties}
    workflow.initialize()
    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, LunaModel)
    assert workflow.evaluator is not None


@pytest.mark.filterwarnings("ignore:executing the bundle config:UserWarning")
def test_monais_federated_client(copied_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # it gives a run_name, and asks for no tracking
    options = {
        "dataset_dir": "luna",
        "cache_dir": "cache",
        "output_dir": "output",
        "batch_size": 8,
        "precache_workers": 0,
    }
    client = MonaiAlgo(
        ".",
        config_train_filename="configs/train.yaml",
        train_kwargs=options | {"precache_workers": 0},
        config_evaluate_filename=None,
        best_model_filepath="output/model.pt",
    )
    client.initialize({"client_name": "clinic"})
    for _ in range(2):
        weights = {name: value.clone() for name, value in client.trainer.network.state_dict().items()}
        client.train(ExchangeObject(weights=weights), {})
    best = client.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
    assert best.keys() == client.trainer.network.state_dict().keys()
    table = pd.read_csv("output/metrics.csv")
    assert table["epoch"].tolist() == [1, 1, 2, 2]
    assert not list((copied_bundle / "output").glob("*previous-2*"))
    for data in (client.train_workflow.train_dataset_data, client.train_workflow.val_dataset_data):
        assert [(Path(item["image"]).suffix, item["label"]) for item in data] == [(".mhd", 1)]
