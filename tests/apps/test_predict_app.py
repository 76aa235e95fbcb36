"""Predictions of any scan: the same from every format, and one clear line for every kind of damage."""

import json

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from luna_monai.apps import LunaPredictApp
from luna_monai.data.geometry import Geometry
from luna_monai.networks import LunaModel

SHAPE = (36, 60, 56)
CENTERS = np.array([[18, 30, 28], [0, 0, 0], [35, 59, 55], [5, 50, 20], [30, 10, 40], [18, 31, 27]])


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of a network that has learnt nothing, but says something else about each crop."""
    torch.manual_seed(3)
    network = LunaModel()
    network.tail_batchnorm.running_mean.fill_(-500)
    network.tail_batchnorm.running_var.fill_(400.0**2)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def voxels():
    """Even HU from air to bone, smooth enough that neighbouring voxels are alike."""
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32))
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(noise, 2.0))
    return (np.round(smooth / smooth.std() * 250) * 2 - 500).clip(-1024, 1024).astype(np.int16)


@pytest.fixture(scope="session")
def geometry():
    """A straight grid."""
    return Geometry(SHAPE[::-1], (0.7, 0.8, 1.25), (-166.5, -171.25, -340.75), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def oblique(geometry):
    """The same grid, turned by 20 and 10 degrees."""
    (a, b), (c, d) = np.cos([0.35, 0.17]), np.sin([0.35, 0.17])
    turned = np.array([[a, -c, 0], [c, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, b, -d], [0, d, b]])
    return Geometry(geometry.size, geometry.spacing, geometry.origin, tuple(map(tuple, turned)))


def image_of(voxels, geometry):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ravel(geometry.direction).astype(float).tolist())
    return image


def write_points(path, geometry, **columns):
    table = pd.DataFrame(geometry.index_to_world(CENTERS), columns=["coordX", "coordY", "coordZ"])
    table.assign(**columns).to_csv(path, index=False)
    return path


@pytest.fixture
def predict(tmp_path, weights):
    """Return a function that runs the command and gives the content of its JSON file."""

    def run(scan, *arguments, weights=weights):
        output = tmp_path / "out.json"
        LunaPredictApp([scan, "--weights", weights, "--output", output, *arguments]).main()
        return json.loads(output.read_text())

    return run


def probabilities(content, scan=0):
    """Probabilities in the order of CENTERS."""
    found = {tuple(one["voxel"]): one["probability"] for one in content["scans"][scan]["candidates"]}
    return [found[tuple(center)] for center in CENTERS.tolist()]


@pytest.fixture
def expected(tmp_path, predict, voxels, geometry):
    """What is said about the scan as an .mhd file."""
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "expected.mhd"))
    content = predict(tmp_path / "expected.mhd", "--candidates", write_points(tmp_path / "expected.csv", geometry))
    return probabilities(content)


@pytest.mark.parametrize("name", ["a.mhd", "zipped.mhd", "b.mha", "c.nii", "c.nii.gz", "d.nrrd", "zipped.nrrd"])
def test_every_file_format_gives_the_same(name, tmp_path, predict, voxels, geometry, expected):
    assert np.std(expected) > 0.02
    path = tmp_path / name
    sitk.WriteImage(image_of(voxels, geometry), str(path), useCompression="zipped" in name)
    content = predict(path, "--candidates", write_points(tmp_path / "points.csv", geometry))
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    assert content["scans"][0]["seriesuid"] == name.split(".")[0]
    assert content["scans"][0]["warnings"] == []
