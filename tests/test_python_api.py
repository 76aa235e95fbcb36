"""``import luna_monai as lm``: a classifier, scans and the dataset of the book, and every example of docs/python.md."""

import re
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import luna_monai as lm


@pytest.fixture(scope="module")
def classifier():
    return lm.load(device="cpu")


def test_import_is_quick():
    code = "import sys, luna_monai; assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_crops_are_classified_as_the_network_does(classifier):
    crops = np.random.default_rng(0).integers(-1200, 1200, (3, 32, 48, 48))
    with torch.inference_mode():
        clipped = torch.from_numpy(crops.clip(-1000, 1000)).float()[:, None]
        expected = classifier.network(clipped).softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(classifier.classify(crops), expected, atol=1e-6)
    assert classifier.classify(crops[:0]).shape == (0,)
    np.testing.assert_allclose(
        classifier.classify(torch.from_numpy(crops).float().requires_grad_()), expected, atol=1e-6
    )
    assert classifier.classify(torch.from_numpy(crops).bfloat16()).shape == (3,)


@pytest.mark.parametrize("writable", [True, False])
def test_the_crops_of_the_caller_do_not_change(classifier, writable):
    crops = np.full((2, 32, 48, 48), 1500.4, np.float32)
    crops.flags.writeable = writable
    classifier.classify(crops)
    image = torch.full((2, 1, 32, 48, 48), -3024.7)
    classifier.inferer(image, classifier.network)
    assert np.unique(crops) == np.float32(1500.4)
    assert image.unique() == -3024.7


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (np.zeros((32, 48, 48)), r"must have the shape \(n, 32, 48, 48\), found \(32, 48, 48\)"),
        (np.full((1, 32, 48, 48), np.nan), "not finite"),
    ],
)
def test_bad_crops_are_one_line(classifier, crops, message):
    with pytest.raises(lm.LunaError, match=message):
        classifier.classify(crops)


def test_a_folder_of_scans_needs_a_choice(classifier, tmp_path, write_dataset):
    write_dataset(tmp_path / "luna", scans=2)
    with pytest.raises(lm.LunaError, match="2 scans; choose one with seriesuid, for example"):
        classifier(tmp_path / "luna")


def test_a_scan_that_shows_no_chest_is_logged(classifier, tmp_path, caplog):
    sitk.WriteImage(sitk.GetImageFromArray(np.full((40, 50, 50), 40, dtype=np.int16)), tmp_path / "water.nii.gz")
    assert classifier(tmp_path / "water.nii.gz")["diameter_mm"].isna().all()
    assert "The scan does not seem to show the chest" in caplog.text


def test_the_dataset_of_the_book(tmp_path, write_dataset):
    write_dataset(tmp_path / "luna", scans=2, candidates=12)
    every = lm.LunaDataset(tmp_path / "luna")
    validation = lm.LunaDataset(tmp_path / "luna", 10, is_val_set=True, cache_dir=tmp_path / "cache")
    training = lm.LunaDataset(tmp_path / "luna", 10, is_val_set=False)
    assert len(validation) + len(training) == len(every) == len(lm.read_candidates(tmp_path / "luna"))
    block, label, uid, center = validation[0]
    assert (block.dtype, block.shape, label.tolist(), center.shape) == (torch.float32, (1, 32, 48, 48), [0, 1], (3,))
    assert uid == every[0][2]
    assert torch.equal(block, every[0][0])
    with pytest.raises(lm.LunaError, match=r"no candidates of 1\.2"):
        lm.LunaDataset(tmp_path / "luna", series_uid="1.2")


# MONAI says of every configuration that it may run code.
@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
def test_every_example_of_the_page(repository, tmp_path, monkeypatch, write_dataset):
    monkeypatch.chdir(tmp_path)
    luna = tmp_path / "data-unversioned" / "part2" / "luna"
    write_dataset(luna, scans=2, candidates=12)
    sitk.WriteImage(sitk.ReadImage(str(next(luna.glob("subset0/*.mhd")))), "scan.nii.gz")
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "python.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), {})
    assert (tmp_path / "findings.csv").is_file()
