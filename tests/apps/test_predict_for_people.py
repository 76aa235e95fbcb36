"""What predict writes for people and their viewers: pages, heat maps, structured reports."""

import json
import re

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from highdicom.sr import srread

from luna_monai.apps import LunaPredictApp
from luna_monai.apps.base import run_app
from luna_monai.networks import LunaModel
from luna_monai.networks.exports import export_network
from luna_monai.scans.geometry import Geometry

SHAPE = (40, 64, 60)
CENTERS = np.array([[20, 30, 28], [8, 40, 12], [35, 9, 50], [0, 0, 0], [21, 31, 29], [5, 5, 50], [30, 50, 5]])


@pytest.fixture
def geometry():
    """A grid that lies as DICOM slices of a patient on the back, feet first in the file."""
    return Geometry(SHAPE[::-1], (0.7, 0.7, 1.25), (-160.0, -171.5, -340.0), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-950, -600, SHAPE).astype(np.int16)


@pytest.fixture
def points(tmp_path, geometry):
    table = pd.DataFrame(geometry.index_to_world(CENTERS), columns=["coordX", "coordY", "coordZ"])
    table.to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "points.csv"


@pytest.fixture
def network():
    torch.manual_seed(5)
    return LunaModel().eval()


@pytest.fixture
def weights(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_all_at_once_from_dicom(tmp_path, write_dicom, voxels, geometry, points, weights):
    files = write_dicom(tmp_path / "study" / "ct", voxels, geometry)
    out = tmp_path / "out"
    arguments = ["--output", out / "a.json", "--output", out / "{seriesuid}.dcm", "--report", out / "a.html"]
    LunaPredictApp(
        [tmp_path / "study", "--candidates", points, "--weights", weights, *arguments, "--explain", out / "a.nii.gz"]
    ).main()
    assert {path.name for path in out.iterdir()} == {"a.json", "1.2.826.7.dcm", "a.html", "a.nii.gz"}
    (scan,) = json.loads((out / "a.json").read_text())["scans"]
    candidates = scan["candidates"]

    groups = srread(out / "1.2.826.7.dcm").content.get_planar_roi_measurement_groups()
    assert [group.get_measurements()[0].value for group in groups] == [one["probability"] for one in candidates]
    places = np.concatenate([group.roi.value for group in groups])
    np.testing.assert_allclose(places, [one["position"] for one in candidates], atol=1e-4)
    shown = groups[0].get_measurements()[0].referenced_images[0].referenced_sop_instance_uid
    assert shown == f"1.2.826.7.{candidates[0]['voxel'][0] + 1}"
    assert len(files) == SHAPE[0]

    heat = nibabel.load(out / "a.nii.gz")
    np.testing.assert_allclose(heat.affine, geometry.affine_ras_zyx[:, [2, 1, 0, 3]], atol=1e-4)
    assert heat.shape == SHAPE[::-1]
    assert heat.get_fdata().max() == 255

    html = (out / "a.html").read_text()
    assert html.count("<article") == len(CENTERS)
    assert html.count('class="heat"') == 3 * 5
    assert re.findall(r"<dt>voxel z, y, x</dt><dd>(.*?)</dd>", html) == [
        ", ".join(map(str, one["voxel"])) for one in candidates
    ]


def test_the_heat_of_turned_and_small_scans_stays_in_the_space_of_the_file(tmp_path, voxels, geometry, points, weights):
    """The network sees both scans alike, so that their heat is alike, each in the order of its own axes."""
    small = voxels[:, :40]
    affine = geometry.affine_ras_zyx[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(small.T, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt("SRA")
    )
    nibabel.save(image, tmp_path / "a.nii")
    nibabel.save(image.as_reoriented(turn), tmp_path / "b.nii")
    near = pd.read_csv(points)[CENTERS[:, 1] < 40]
    near.to_csv(points, index=False)
    found = []
    for name in ("a", "b"):
        arguments = ["--candidates", points, "--weights", weights, "--explain", tmp_path / f"{name}.heat.nii"]
        LunaPredictApp([tmp_path / f"{name}.nii", *arguments, "explain_candidates=2"]).main()
        found.append(nibabel.load(tmp_path / f"{name}.heat.nii"))
        assert found[-1].shape == nibabel.load(tmp_path / f"{name}.nii").shape
    np.testing.assert_allclose(found[0].as_reoriented(turn).get_fdata(), found[1].get_fdata(), atol=1)
    np.testing.assert_allclose(found[0].affine, affine, atol=1e-4)


def test_exported_weights_are_explained_by_occlusion(tmp_path, voxels, geometry, points, network, capfd):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    export_network(network, "torchscript", tmp_path / "model.ts", {})
    arguments = [tmp_path / "a.mhd", "--candidates", points, "--weights", tmp_path / "model.ts"]
    arguments += ["--explain", tmp_path / "heat.nii.gz"]
    capfd.readouterr()
    assert run_app(LunaPredictApp, arguments) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "explain_method grad_cam looks at the layer 'block1.relu2'" in error
    assert not (tmp_path / "heat.nii.gz").exists()
    assert run_app(LunaPredictApp, [*arguments, "--explain-method", "occlusion", "explain_candidates=1"]) == 0
    heat = nibabel.load(tmp_path / "heat.nii.gz").get_fdata()
    # One candidate: all the heat is within what is cut out around it.
    assert np.ptp(np.argwhere(heat > 0), axis=0).max() < 48
    assert heat.max() == 255


def test_a_report_of_several_scans(make_dataset, tmp_path, weights):
    dataset_dir = make_dataset(scans=3, candidates=4)
    arguments = ["--candidates", dataset_dir / "candidates.csv", "--weights", weights, "report_candidates=2"]
    LunaPredictApp([dataset_dir, *arguments, "--report", tmp_path / "report.html"]).main()
    html = (tmp_path / "report.html").read_text()
    assert "3 scans" in html
    assert html.count("<article") == 2
    assert {"1.2.3.0", "1.2.3.1", "1.2.3.2"} <= set(re.findall(r"<td>([\d.]+)</td>", html))
