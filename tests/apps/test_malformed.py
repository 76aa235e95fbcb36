"""Malformed settings: one table of what is given, and the one line that it gives; nothing is made before."""

import pytest
import yaml
from monai.bundle import ConfigParser

from luna_monai.errors import LunaError, find_luna_error, unwrapped_luna_errors
from luna_monai.share import bundle_dir, configs_dir
from luna_monai.workflow import load_workflow, parse_override, read_config

TRAIN = bundle_dir() / "configs" / "train.yaml"
INFERENCE = bundle_dir() / "configs" / "inference.yaml"

#: key=value on the command line of train -> the line, or the value that it becomes.
TRAINING = [
    # keys
    ("max_epoch=3", r"'max_epoch' is not a key of the configuration; did you mean 'max_epochs'\?"),
    ("optimiser={}", r"'optimiser' is not a key of the configuration; did you mean 'optimizer'\?"),
    ("optimiser#lr=1", r"'optimiser#lr' is not a key of the configuration; did you mean 'optimizer#lr'\?"),
    ("train#datalaoder#x=1", "'train#datalaoder#x' is not a key of the configuration; did you mean 'train#dataloader"),
    ("train#extra=1", "'train#extra' is not a key of the configuration; did you mean"),
    ("max_epochs#a=1", "'max_epochs#a' is not a key"),
    ("train#handlers#99=1", "'train#handlers#99' is not a key"),
    ("optimizer#weight_decay=0.01", 0.01),
    ("network_def#split_size=2", 2),
    ("network_def#batch_norm=true", True),
    ("train#dataloader#drop_last=true", True),
    # types and ranges
    ("optimizer#lr=1e-3", 0.001),
    ("train#sampler#ratio=1E2", 100.0),
    ("seed=1e3", 1000),
    ("optimizer#lr=1e400", "optimizer#lr: inf is not a finite number"),
    ("train#augmentation#rotate=.nan", "train#augmentation#rotate: nan is not a finite number"),
    ("samples_per_epoch=1e9", "samples_per_epoch: 1000000000 is greater than the maximum of 100000000"),
    ("batch_size=100000", "batch_size: 100000 is greater than the maximum of 65536"),
    ("tb_prefix=..", "tb_prefix: '..' does not match"),
    ("tb_prefix=/tmp", "tb_prefix: '/tmp' does not match"),
    ("key_metric=auc", r"key_metric: 'auc' is not one of \['loss/all', "),
    ("max_epochs=2.5", r"max_epochs: 2\.5 is not of type 'integer'"),
    ("max_epochs=0", "max_epochs: 0 is less than the minimum of 1"),
    ("max_epochs=true", "max_epochs: True is not of type 'integer'"),
    ("max_epochs=null", "max_epochs: None is not of type 'integer'"),
    ("max_epochs=[1]", r"max_epochs: \[1\] is not of type 'integer'"),
    ("batch_size=0", "batch_size: 0 is less than the minimum of 1"),
    ("batch_size=big", "batch_size: 'big' is not of type 'integer'"),
    ("val_interval=0", "val_interval: 0 is less than the minimum of 1"),
    ("samples_per_epoch=0", "samples_per_epoch: 0 is less than the minimum of 1"),
    ("seed=-1", "seed: -1 is less than the minimum of 0"),
    ("fold=-1", "fold: -1 is less than the minimum of 0"),
    ("num_workers=10000", "num_workers: 10000 is greater than the maximum of 1024"),
    ("num_workers=-1", "num_workers: -1 is less than the minimum of 0"),
    ("precision=float16", r"precision: 'float16' is not one of \['auto', 'bfloat16', 'float32'\]"),
    ("device=gpu", "device: 'gpu' does not match '.*cpu.*cuda"),
    ("cache_dir=3", "cache_dir: 3 is not of type 'string', 'null'"),
    ("cache_dir=null", None),
    ("dataset_dir=null", "dataset_dir: None is not of type 'string'"),
    ("resume=maybe", "resume: 'maybe' is not of type 'boolean'"),
    ("outside_volume=ignore", r"outside_volume: 'ignore' is not one of \['error', 'drop'\]"),
    ("train#augmentation#thicken=0.5", r"thicken: 0\.5 is greater than or equal to the maximum of 0\.5"),
    ("train#augmentation#shift=-1", "train#augmentation#shift: -1 is less than the minimum of 0"),
    ("train#augmentation#flip=sometimes", "train#augmentation#flip: 'sometimes' is not of type 'boolean'"),
    ("train#augmentation=null", None),
    ("train#sampler#ratio=0", "train#sampler#ratio: 0 is less than or equal to the minimum of 0"),
    ("train#deterministic_transforms#1#spatial_size=[32, 48]", r"spatial_size: \[32, 48\] is too short"),
    ("train#deterministic_transforms#1#spatial_size=[0, 1, 1]", "spatial_size#0: 0 is less than the minimum of 1"),
    ("network_def#split_size=0", "network_def#split_size: 0 is less than the minimum of 1"),
    ("network_def#batch_norm=3", "network_def#batch_norm: 3 is not of type 'boolean'"),
    ("weights=model.pt", "weights: has no effect, because nothing in this configuration refers to it"),
    ("flips=true", "flips: has no effect"),
    ("tracking_uri=http://nowhere", "tracking_uri: has no effect"),
    ("network_def#conv_channels=0", "network_def#conv_channels: 0 is less than the minimum of 1"),
    ("train#handlers=null", "train#handlers: None is not of type 'array'"),
    ("train#dataloader=null", "train#dataloader: None is not of type 'object'"),
    ("train=null", "train: None is not of type 'object'"),
    ("validate#dataset=3", "validate#dataset: 3 is not of type 'object'"),
    # sections and references
    ("orientation=LRS", "orientation: 'LRS' does not match"),
    ("train#deterministic_transforms#0#orientation=LRS", "orientation: 'LRS' does not match"),
    ("optimizer={lr: 0.01}", r"optimizer: .* replaces the whole section; .* write 'optimizer#lr: …' in a file"),
    # the form
    ("=3", "an override has the form key=value"),
    ("fold", "an override has the form key=value"),
    ("fold=[1", "the value is not valid YAML"),
]  # fmt: skip


def load(*texts, files=(str(TRAIN),), kind="train", run_id="training"):
    return load_workflow(run_id, list(files), dict(map(parse_override, texts)), kind).parser


@pytest.mark.parametrize(("given", "expected"), TRAINING)
def test_settings_of_training(given, expected):
    if isinstance(expected, str):
        with pytest.raises(LunaError, match=expected) as caught:
            load(given)
        assert "\n" not in str(caught.value)
    else:
        assert load(given)[given.partition("=")[0]] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("batch_sise=3", "'batch_sise' is not a key of the configuration; did you mean 'batch_size'"),
        ("batch_size=0", "batch_size: 0 is less than the minimum of 1"),
        ("inferer#batch_size=-1", "inferer#batch_size: -1 is less than the minimum of 1"),
        ("dataset#spatial_size=[1]", r"dataset#spatial_size: \[1\] is too short"),
        ("precision=half", r"precision: 'half' is not one of \['auto', 'bfloat16', 'float32'\]"),
        ("spatial_size=[32]", r"spatial_size: \[32\] is too short"),
        ("coordinates=mm", r"coordinates: 'mm' is not one of \['lps', 'ras', 'voxel'\]"),
        ("weights=null", "weights: None is not of type 'string'"),
        ("proposer#max_candidates=0", "proposer#max_candidates: 0 is less than the minimum of 1"),
        ("explain_findings=many", "explain_findings: 'many' is not of type 'integer'"),
        ("proposer=null", "proposer: None is not of type 'object'"),
    ],
)
def test_settings_of_prediction(given, expected):
    with pytest.raises(LunaError, match=expected):
        load(given, files=[str(INFERENCE)], kind="inference", run_id="run")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"overlay.yaml: expected keys and values, such as 'max_epochs: 3', found None"),
        ("# only a comment\n", "overlay.yaml: expected keys and values"),
        ("- max_epochs\n", r"overlay.yaml: expected keys and values, .* found \['max_epochs'\]"),
        (
            "fold: 1\nsplit:\n\tfold: 2\n",
            "overlay.yaml: cannot be read as YAML .*line 3, column 1.*; indent with",
        ),
        ("max_epoch: 3", "'max_epoch' is not a key of the configuration; did you mean 'max_epochs'"),
        ("optimiser: {_target_: torch.optim.SGD}", "'optimiser' is not a key of the configuration"),
        ("optimizer: {lr: 0.01}", "optimizer: .* replaces the whole section"),
        ("nothing#here: 1", "overlay.yaml: 'nothing#here' is not a key of the configuration"),
        ("rate: 1e-2\noptimizer#lr: '@rate'", None),  # a new key that something refers to
        ("mine: ['$print(1)']", None),  # steps of a run
    ],
)
def test_overlays(tmp_path, text, expected):
    path = tmp_path / "overlay.yaml"
    path.write_text(text)
    if expected is None:
        assert load(files=[str(TRAIN), str(path)])
    else:
        with pytest.raises(LunaError, match=expected):
            load(files=[str(TRAIN), str(path)])


def test_all_shipped_configurations_pass():
    for path in configs_dir().glob("*.yaml"):
        load(files=[str(TRAIN), str(path)])
        load("weights=w.pt", files=[str(TRAIN), str(path), str(TRAIN.parent / "evaluate.yaml")])
    for name in ("train", "inference"):
        extra = TRAIN.parent / f"multi_gpu_{name}.yaml"
        load(files=[str(TRAIN.parent / f"{name}.yaml"), str(extra)], kind=name)


def test_an_option_without_effect_is_refused():
    files = [str(TRAIN), str(configs_dir() / "book_ch11.yaml")]
    with pytest.raises(LunaError, match="fold: has no effect"):
        load("fold=2", files=files)


def test_the_same_through_monai(monkeypatch):
    def through_monai(**overrides):
        parser = ConfigParser(read_config(TRAIN) | overrides)
        with unwrapped_luna_errors():
            return parser.get_parsed_content("configuration"), parser

    for overrides, expected in (
        ({"max_epoch": 3}, "'max_epoch' is not a key of the configuration; did you mean 'max_epochs'"),
        ({"max_epochs": 2.5}, "max_epochs: 2.5 is not of type 'integer'"),
        ({"seed": -1}, "seed: -1 is less than the minimum of 0"),
        ({"optimizer": {"lr": 1}}, "optimizer: .* replaces the whole section"),
    ):
        with pytest.raises(LunaError, match=expected):
            through_monai(**overrides)
    _, parser = through_monai(output_dir="out#7", dataset_dir="h#1/luna")
    assert [parser.get_parsed_content(key) for key in ("output_dir", "dataset_dir")] == ["out#7", "h#1/luna"]
    configuration, parser = through_monai(cache_dir="null", device="cpu", output_dir="out")
    assert configuration["cache_dir"] is parser.get_parsed_content("cache_dir") is None
    assert str(parser.get_parsed_content("device")) == configuration["device"] == "cpu"
    assert configuration["output_dir"].startswith("/")
    assert yaml.safe_load(yaml.safe_dump(dict(configuration)))["configuration"].startswith("$")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer#lr", -1, "optimizer: torch.optim.Adam: Invalid learning rate: -1"),
        ("optimizer#learning_rate", 1, "optimizer: torch.optim.Adam: TypeError: Adam.__init__() got an unexpected"),
        ("optimizer#_target_", "torch.optim.Adamm", "optimizer: torch.optim.Adamm: ModuleNotFoundError: Cannot locate"),
        ("optimizer#_target_", "nowhere.Adam", "optimizer: nowhere.Adam: ModuleNotFoundError: Cannot locate class or"),
        ("network_def#in_channels", "$1 / 0", "network_def#in_channels: ZeroDivisionError: division by zero"),
        ("optimizer#lr", "$undefined", "optimizer#lr: NameError: name 'undefined' is not defined"),
        (
            "optimizer#lr",
            "@rate",
            "optimizer: torch.optim.Adam: the referring item `@rate` is not defined in the config content.",
        ),
        ("optimizer#lr", "@optimizer", "optimizer: torch.optim.Adam: detected circular references 'optimizer'"),
    ],
)
def test_failed_objects_are_one_line_with_key_class_and_reason(key, value, expected):
    settings = {key: value, "network#spatial_size": [32, 48, 48]}  # the default reads the dataset
    parser = load_workflow("training", [str(TRAIN)], settings).parser
    with pytest.raises(LunaError) as caught, unwrapped_luna_errors():
        parser.get_parsed_content("optimizer")
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_internal_errors_are_not_hidden():
    parser = ConfigParser({"run": ["$[][1]"]})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("run::0")
    assert find_luna_error(caught.value) is None  # a step that fails while it runs


@pytest.mark.parametrize("handled", ["raise KeyError('a bug') from None", "raise KeyError('a bug')"])
def test_an_exception_while_a_luna_error_is_handled_is_not_that_error(handled):
    with pytest.raises(KeyError) as caught:
        exec(f"try:\n    raise LunaError('bad row')\nexcept LunaError:\n    {handled}")
    assert find_luna_error(caught.value) is None
