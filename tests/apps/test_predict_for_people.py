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
from luna_monai.apps.cli import run_app
from luna_monai.networks import LunaModel
from luna_monai.networks.exports import export_network
from luna_monai.scans.geometry import Geometry

SHAPE = (40, 64, 60)
CENTERS = np.array([[20, 30, 28], [8, 40, 12], [35, 9, 50], [0, 0, 0], [21, 31, 29], [5, 5, 50], [30, 50, 5]])


@pytest.fixture
def geometry():
    """The grid of DICOM slices of a patient in supine position, feet first."""
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
    write_dicom(tmp_path / "study" / "ct", voxels, geometry)
    out = tmp_path / "out"
    arguments = ["--output", out / "a.json", "--output", out / "{seriesuid}.dcm", "--report", out / "a.html"]
    arguments += ["--threshold", 0, "--explain", out / "a.nii.gz"]
    LunaPredictApp([tmp_path / "study", "--candidates", points, "--weights", weights, *arguments]).main()
    assert {path.name for path in out.iterdir()} == {"a.json", "1.2.826.7.dcm", "a.html", "a.nii.gz"}
    (scan,) = json.loads((out / "a.json").read_text())["scans"]
    findings = scan["findings"]
    assert sum(one["candidates"] for one in findings) == len(CENTERS)

    groups = srread(out / "1.2.826.7.dcm").content.get_planar_roi_measurement_groups()
    assert [group.get_measurements()[0].value for group in groups] == [one["probability"] for one in findings]
    places = np.concatenate([group.roi.value for group in groups])
    np.testing.assert_allclose(places, [one["position"] for one in findings], atol=1e-4)
    shown = groups[0].get_measurements()[0].referenced_images[0].referenced_sop_instance_uid
    assert shown == f"1.2.826.7.{findings[0]['voxel'][0] + 1}"

    heat = nibabel.load(out / "a.nii.gz")
    np.testing.assert_allclose(heat.affine, geometry.affine_ras_zyx[:, [2, 1, 0, 3]], atol=1e-4)
    assert heat.shape == SHAPE[::-1]
    assert heat.get_fdata().max() == 255

    html = (out / "a.html").read_text()
    assert html.count("<article") == len(findings)
    assert 'class="heat"' in html
    assert shown in html
    assert f"instance {findings[0]['voxel'][0] + 1}" in html


def test_exported_weights_cannot_be_explained(tmp_path, voxels, geometry, points, network, capfd):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    export_network(network, "torchscript", tmp_path / "model.ts", {})
    arguments = [tmp_path / "a.mhd", "--candidates", points, "--weights", tmp_path / "model.ts"]
    capfd.readouterr()
    assert run_app(LunaPredictApp, [*arguments, "--explain", tmp_path / "heat.nii.gz"]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "--explain needs the layer 'block1.norm2'" in error
    assert not (tmp_path / "heat.nii.gz").exists()


def test_page_and_json_say_that_findings_are_not_shown(tmp_path, voxels, geometry, points, weights):
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    outputs = ["--report", tmp_path / "a.html", "--output", tmp_path / "a.json", "--max-findings", 1, "--threshold", 0]
    LunaPredictApp([tmp_path / "a.mhd", "--candidates", points, "--weights", weights, *outputs]).main()
    (scan,) = json.loads((tmp_path / "a.json").read_text())["scans"]
    count = len(scan["findings"])
    assert count > 1
    assert (scan["threshold"], scan["findings_shown"]) == (0, 1)
    html = (tmp_path / "a.html").read_text()
    assert (
        f"{count} of {count} findings have a probability of at least 0. The page shows the 1 most probable of" in html
    )
    assert html.count("<article") == 1


def test_a_report_of_several_scans(make_dataset, tmp_path, weights):
    dataset_dir = make_dataset(scans=3, candidates=4)
    arguments = [
        "--candidates",
        dataset_dir / "candidates.csv",
        "--weights",
        weights,
        "report_findings=2",
        "threshold=0",
    ]
    LunaPredictApp([dataset_dir, *arguments, "--report", tmp_path / "report.html"]).main()
    html = (tmp_path / "report.html").read_text()
    assert "3 scans" in html
    assert len(re.findall('<div class="stacks">', html)) == 2
    assert re.findall(r'<h2 id="scan\d-title">(.*?)</h2>', html) == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
