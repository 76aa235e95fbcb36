"""Malformed overlays through MONAI's own command line: what is laid over train.yaml, and the one line that it gives."""

import io
import sys

import fire
import monai.bundle.__main__
import pytest

OVERLAYS = [
    ("max_epoch: 3", "'max_epoch' is not a key of the configuration; did you mean 'max_epochs'?"),
    ("max_epochs: 0", "max_epochs: 0 is less than the minimum of 1"),
    ("batch_size: '@nope'", "batch_size: the referring item `@nope` is not defined"),
    (
        "batch_size: '@val_batch_size'\nval_batch_size: '@batch_size'",
        "val_batch_size: detected circular references 'batch_size'",
    ),
    ("optimizer: {lr: 0.01}", "optimizer: {'lr': 0.01} replaces the whole section; to change one value"),
    ("optimizer#_target_: torch.optim.Nope", "optimizer: torch.optim.Nope: ModuleNotFoundError: Cannot locate class"),
    ("optimizer#rate: 1", "optimizer: torch.optim.Adam: TypeError: Adam.__init__() got an unexpected keyword"),
    ("optimizer#lr: -1", "optimizer: torch.optim.Adam: Invalid learning rate: -1"),
    (
        "train#deterministic_transforms#1#spatial_size: [16, 48, 48]",
        "network_def: LunaModel cannot classify candidates of 16 x 48 x 48 voxels (mat1 and mat2",
    ),
    ("network_def#in_channels: 2", "network_def: LunaModel cannot classify candidates of 32 x 48 x 48 voxels"),
    (
        "train#dataloader#drop_last: true\nbatch_size: 9999",
        "batch_size: 9999 exceeds the samples of an epoch",
    ),
    ("+nothing: [1]", "'nothing' is not a key of the configuration"),
    ("fold: 7", "fold 7: no scan with candidates in"),
]


# MONAI says of every configuration that it may run code.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning", "ignore:Can't merge entry:UserWarning")
@pytest.mark.parametrize(("text", "expected"), OVERLAYS)
def test_one_line(repository, make_dataset, tmp_path, monkeypatch, text, expected):
    (tmp_path / "overlay.yaml").write_text(text)
    files = [str(repository / "bundle" / "configs" / "train.yaml"), str(tmp_path / "overlay.yaml")]
    places = [f"--dataset_dir={make_dataset(scans=2)}", "--cache_dir=null", f"--output_dir={tmp_path / 'run'}"]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI's, around ours
        fire.Fire(vars(monai.bundle.__main__), command=["run", "training", f"--config_file={files}", *places])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    sys.excepthook(caught.type, caught.value, caught.tb)
    (line,) = sys.stderr.getvalue().splitlines()
    assert line.startswith(f"error: {expected}")
    assert not (tmp_path / "run").exists()
