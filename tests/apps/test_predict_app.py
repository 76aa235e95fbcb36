"""Predictions of any scan: the same from every format, and one clear line for every kind of damage."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigWorkflow

from luna_monai.apps import LunaPredictApp
from luna_monai.apps.cli import run_app
from luna_monai.errors import LunaError
from luna_monai.metrics.calibration import Calibration, log_odds_of_probability
from luna_monai.networks import LunaModel
from luna_monai.predictions.outputs import write_volume
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.scan import read_scan
from luna_monai.share import bundle_dir
from luna_monai.tables import EXACTLY

SHAPE = (36, 60, 56)
CENTERS = np.array([[18, 30, 28], [0, 0, 0], [35, 59, 55], [5, 50, 20], [30, 10, 40], [18, 31, 27]])


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of an untrained network that gives a different probability for each crop."""
    torch.manual_seed(3)
    network = LunaModel()
    network.tail_batchnorm.running_mean.fill_(-500)
    network.tail_batchnorm.running_var.fill_(400.0**2)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def voxels():
    """Even HU from air to bone, so smooth that neighboring voxels have similar values."""
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
        # These scans show no chest, which is not what most tests are about.
        LunaPredictApp([scan, "--weights", weights, "--output", output, "examine=null", *arguments]).main()
        return json.loads(output.read_text())

    return run


def probabilities(content, scan=0):
    """Probabilities in the order of CENTERS."""
    found = {tuple(one["voxel"]): one["probability"] for one in content["scans"][scan]["candidates"]}
    return [found[tuple(center)] for center in CENTERS.tolist()]


@pytest.fixture(scope="session")
def expected_scan(tmp_path_factory, weights, voxels, geometry):
    """The results for the scan as an .mhd file."""
    folder = tmp_path_factory.mktemp("expected")
    sitk.WriteImage(image_of(voxels, geometry), str(folder / "a.mhd"))
    arguments = ["--candidates", write_points(folder / "points.csv", geometry), "--output", folder / "out.json"]
    LunaPredictApp([folder / "a.mhd", "--weights", weights, "examine=null", *arguments]).main()
    return json.loads((folder / "out.json").read_text())


@pytest.fixture
def expected(expected_scan):
    """The probabilities of these results."""
    return probabilities(expected_scan)


@pytest.mark.parametrize("name", ["zipped.mhd", "b.mha", "c.nii.gz", "d.nrrd"])
def test_every_file_format_gives_the_same_result(name, tmp_path, predict, voxels, geometry, expected):
    assert np.std(expected) > 0.02
    path = tmp_path / name
    sitk.WriteImage(image_of(voxels, geometry), str(path), useCompression="zipped" in name)
    content = predict(path, "--candidates", write_points(tmp_path / "points.csv", geometry))
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    assert content["scans"][0]["seriesuid"] == name.split(".")[0]
    assert content["scans"][0]["warnings"] == []


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_types_of_voxels(dtype, tmp_path, predict, voxels, geometry, expected_scan):
    sitk.WriteImage(image_of(voxels.astype(dtype), geometry), str(tmp_path / "a.nii.gz"))
    content = predict(tmp_path / "a.nii.gz", "--candidates", write_points(tmp_path / "points.csv", geometry))
    np.testing.assert_allclose(probabilities(content), probabilities(expected_scan), atol=1e-5)
    assert content["scans"][0]["voxels_sha256"] == expected_scan["scans"][0]["voxels_sha256"]


@pytest.mark.parametrize("axes", ["RAS", "PSR", "SLP"])
def test_any_order_of_the_axes(axes, tmp_path, predict, voxels, geometry, expected):
    """NIfTI files are kept in all orders; voxel indices in the results are those of the file."""
    affine = geometry.affine_ras_zyx[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(voxels.T, affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
    )
    turned = image.as_reoriented(turn)
    nibabel.save(turned, tmp_path / "a.nii")
    content = predict(tmp_path / "a.nii", "--candidates", write_points(tmp_path / "points.csv", geometry))
    candidates = content["scans"][0]["candidates"]
    found = sorted((one["position"], one["probability"], one["voxel"]) for one in candidates)
    world = geometry.index_to_world(CENTERS).tolist()
    wanted = sorted(zip(world, expected, CENTERS.tolist(), strict=True))
    for (position, probability, voxel), (place, value, center) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(position, place)
        assert probability == pytest.approx(value, abs=1e-5)
        assert turned.dataobj[tuple(voxel[::-1])] == voxels[tuple(center)]


DICOM = {
    "signed": {},
    "unsigned, 12 bits": {"PixelRepresentation": 0, "BitsStored": 12},
    "slope of 0.5": {"RescaleSlope": 0.5, "RescaleIntercept": -1000},
    "MONOCHROME1": {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 0, "BitsStored": 12},
}


@pytest.mark.parametrize("kind", DICOM)
def test_dicom(kind, tmp_path, predict, write_dicom, voxels, geometry, expected):
    write_dicom(tmp_path / "dicom", voxels, geometry, tags=DICOM[kind])
    content = predict(tmp_path / "dicom", "--candidates", write_points(tmp_path / "points.csv", geometry))
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    assert content["scans"][0]["seriesuid"] == "1.2.826.7"


def test_a_study_with_other_series_and_files(tmp_path, predict, write_dicom, voxels, geometry, expected):
    """Nested folders without suffixes, with a localizer, timing images, another modality, a report and notes."""
    study = tmp_path / "study"
    write_dicom(study / "a" / "b" / "1", voxels[:20], geometry, suffix="")
    place = geometry.index_to_world(np.array([[20, 0, 0]]))[0]
    rest = Geometry((56, 60, 16), geometry.spacing, tuple(place), geometry.direction)
    write_dicom(study / "a" / "b" / "2", voxels[20:], rest, suffix="", seriesuid="1.2.826.7")
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": "1.2.826.7"}
    write_dicom(study / "scout", voxels[:1], geometry, tags=scout, seriesuid="1.2.9")
    for number in range(3):
        timing = {"SeriesInstanceUID": "1.2.10"}
        write_dicom(study / "timing", voxels[:1], geometry, tags=timing, seriesuid=f"1.2.10.{number}")
    magnetic = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}
    write_dicom(study / "mr", voxels[:4] + 1024, geometry, tags=magnetic, seriesuid="1.2.11")
    (study / "a" / "notes.txt").write_text("not DICOM")
    (study / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (study / "a" / "._1.dcm").write_bytes(b"\0\5\x16\7 of a Mac")
    points = write_points(tmp_path / "points.csv", geometry)
    for scan in (study, study / "a" / "b"):
        content = predict(scan, "--candidates", points)
        np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    with pytest.raises(LunaError, match=r"study: series 1\.2\.11 is not a CT; .*MR Image Storage"):
        predict(study, "--candidates", points, "--seriesuid", "1.2.11")


def test_one_file_of_a_series(tmp_path, predict, write_dicom, voxels, geometry, expected):
    files = write_dicom(tmp_path / "dicom", voxels, geometry)
    write_dicom(tmp_path / "dicom", voxels[::-1], geometry, seriesuid="1.2.826.8")
    points = write_points(tmp_path / "points.csv", geometry)
    content = predict(files[7], "--candidates", points)
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    chosen = predict(tmp_path / "dicom", "--candidates", points, "--seriesuid", "1.2.826.7")
    assert chosen["scans"] == content["scans"]
    with pytest.raises(LunaError, match=r"2 CT series; choose .*: 1\.2\.826\.7 \(36 slices\), 1\.2\.826\.8 \(36 slice"):
        predict(tmp_path / "dicom", "--candidates", points)


@pytest.mark.parametrize("name", ["b.nii.gz", "dicom"])
def test_oblique_scans(name, tmp_path, predict, write_dicom, voxels, geometry, expected):
    """The crops are the same as for the straight grid. The positions are rotated with the patient."""
    turned = oblique(geometry)
    if name == "dicom":
        write_dicom(tmp_path / name, voxels, turned)
    else:
        sitk.WriteImage(image_of(voxels, turned), str(tmp_path / name))
    content = predict(tmp_path / name, "--candidates", write_points(tmp_path / "points.csv", turned))
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)


@pytest.mark.parametrize("coordinates", ["lps", "ras", "voxel"])
def test_coordinates(coordinates, tmp_path, predict, voxels, geometry, expected):
    turned = oblique(geometry)
    sitk.WriteImage(image_of(voxels, turned), str(tmp_path / "a.nii"))
    given = turned.index_to_world(CENTERS)
    given = {"lps": given, "ras": given * [-1, -1, 1], "voxel": CENTERS[:, ::-1]}[coordinates]
    table = pd.DataFrame(given, columns=["coordX", "coordY", "coordZ"]).assign(seriesuid="a", found_by="a person")
    table.to_csv(tmp_path / "points.csv", index=False)
    content = predict(tmp_path / "a.nii", "--candidates", tmp_path / "points.csv", "--coordinates", coordinates)
    np.testing.assert_allclose(probabilities(content), expected, atol=1e-5)
    positions = sorted(one["position"] for one in content["scans"][0]["candidates"])
    np.testing.assert_allclose(positions, sorted(turned.index_to_world(CENTERS).tolist()), atol=1e-3)


def test_padding_values_do_not_count(tmp_path, predict, voxels, geometry):
    y, x = np.indices(SHAPE[1:])
    outside = (y - 30) ** 2 + (x - 28) ** 2 > 26**2
    results = []
    for padding in (-1024, -3024):
        sitk.WriteImage(image_of(np.where(outside, np.int16(padding), voxels), geometry), str(tmp_path / "a.mhd"))
        content = predict(tmp_path / "a.mhd", "--candidates", write_points(tmp_path / "points.csv", geometry))
        results.append(probabilities(content))
    np.testing.assert_allclose(results[1:], [results[0]], atol=1e-5)


def test_voxels_that_are_not_finite_are_air(tmp_path, predict, voxels, geometry):
    values = voxels.astype(np.float32)
    values[:, :5] = np.nan
    values[:, 5:8] = -np.inf
    sitk.WriteImage(image_of(values, geometry), str(tmp_path / "a.nii"))
    sitk.WriteImage(image_of(np.where(np.isfinite(values), voxels, -1000), geometry), str(tmp_path / "b.nii"))
    points = write_points(tmp_path / "points.csv", geometry)
    content = predict(tmp_path / "a.nii", "--candidates", points)
    assert content["scans"][0]["warnings"] == [f"{36 * 8 * 56} voxels are not finite; they are set to air (-1000 HU)"]
    np.testing.assert_allclose(
        probabilities(content), probabilities(predict(tmp_path / "b.nii", "--candidates", points)), atol=1e-5
    )


def test_a_scan_smaller_than_a_crop(tmp_path, predict, voxels, geometry):
    """A scan with few slices is padded with air, and the result contains a warning."""
    small = Geometry((56, 60, 10), (0.7, 0.8, 5.0), geometry.origin, geometry.direction)
    sitk.WriteImage(image_of(voxels[:10], small), str(tmp_path / "small.mhd"))
    before = np.full((11, 60, 56), -1000, dtype=np.int16)
    large = np.concatenate([before, voxels[:10], before])
    place = tuple(small.index_to_world(np.array([[-11, 0, 0]]))[0])
    grid = Geometry((56, 60, 32), small.spacing, place, small.direction)
    sitk.WriteImage(image_of(large, grid), str(tmp_path / "large.mhd"))
    inside = CENTERS[CENTERS[:, 0] < 10]
    table = pd.DataFrame(small.index_to_world(inside), columns=["coordX", "coordY", "coordZ"])
    table.to_csv(tmp_path / "points.csv", index=False)
    contents = [
        predict(tmp_path / f"{name}.mhd", "--candidates", tmp_path / "points.csv") for name in ("small", "large")
    ]
    first, second = ([one["probability"] for one in content["scans"][0]["candidates"]] for content in contents)
    np.testing.assert_allclose(first, second, atol=1e-5)
    thick, padded = contents[0]["scans"][0]["warnings"]
    assert thick == "slices are 5 mm apart, more than the 2.5 mm of LUNA16's scans"
    assert padded.startswith("the scan (10 x 60 x 56 voxels z, y, x) is smaller than the crop")
    assert contents[1]["scans"][0]["warnings"] == [thick]
    voxels_found = sorted(one["voxel"] for one in contents[0]["scans"][0]["candidates"])
    assert voxels_found == sorted(inside.tolist())


# ---------------------------------------------------------------------------------------------------------- outputs
def test_outputs(tmp_path, weights, voxels, geometry):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "1.2.3.mhd"))
    points = write_points(tmp_path / "points.csv", geometry, seriesuid="1.2.3")
    outputs = [tmp_path / "new" / name for name in ("a.csv", "b.json", "c.mrk.json", "d-{seriesuid}.json")]
    arguments = [word for output in outputs for word in ("--output", output)]
    # Positional arguments may stand between options.
    arguments = [*arguments, tmp_path / "1.2.3.mhd", "batch_size=4", "--weights", weights, "precision=float32"]
    LunaPredictApp([*arguments, "--candidates", points]).main()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "a.csv",
        "b.json",
        "c.mrk.json",
        "d-1.2.3.json",
    ]
    submission = pd.read_csv(tmp_path / "new" / "a.csv", **EXACTLY)
    assert submission.columns.tolist() == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
    given = pd.read_csv(points)
    place = ["coordX", "coordY", "coordZ"]
    assert sorted(submission[place].to_numpy().tolist()) == sorted(given[place].to_numpy().tolist())  # to the bit
    assert submission["probability"].is_monotonic_decreasing
    content = json.loads((tmp_path / "new" / "b.json").read_text())
    assert content["model"] == {
        "name": "model.pt",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "version": json.loads((bundle_dir() / "configs" / "metadata.json").read_text())["version"],
        "thresholds": {},
        "calibration": None,
    }
    (scan,) = content["scans"]
    assert (scan["seriesuid"], scan["proposed"], scan["size"]) == ("1.2.3", False, [56, 60, 36])
    assert [one["position"] for one in scan["candidates"]] == submission[place].to_numpy().tolist()
    assert [one["probability"] for one in scan["candidates"]] == submission["probability"].tolist()
    assert all(one["probability_calibrated"] is None for one in scan["candidates"])
    assert json.loads((tmp_path / "new" / "d-1.2.3.json").read_text()) == content
    (markups,) = json.loads((tmp_path / "new" / "c.mrk.json").read_text())["markups"]
    shown = [one["position"] for one in markups["controlPoints"]]
    assert shown == [one["position"] for one in scan["findings"] if one["probability"] > 0.5][:20]


def test_operating_points_of_these_weights(tmp_path, weights, monkeypatch, voxels, geometry, expected):
    bundle = tmp_path / "bundle"
    shutil.copytree(bundle_dir() / "configs", bundle / "configs")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    (bundle / "models").mkdir()
    shutil.copy(weights, bundle / "models" / "model.pt")
    monkeypatch.setattr("luna_monai.apps.predict.bundle_dir", lambda: bundle)
    monkeypatch.setattr("luna_monai.workflow.bundle_dir", lambda: bundle)
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "a.mhd"))
    arguments = [tmp_path / "a.mhd", "--candidates", write_points(tmp_path / "points.csv", geometry)]
    calibration = {"temperature": 2.0, "intercept": -3.0, "prevalence": 0.01}
    for sha256, known in ((hashlib.sha256(weights.read_bytes()).hexdigest(), True), ("0" * 64, False)):
        metadata["operating_points"] = {
            "weights_sha256": sha256,
            "calibration": calibration,
            "thresholds": {
                "sensitivity": [{"wanted": 0.9, "threshold": 0.25}],
                "false_positives_per_scan": [{"wanted": n, "threshold": t} for n, t in ((1.0, 0.9), (4.0, 0.75))],
            },
        }
        (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
        LunaPredictApp([*arguments, "--output", tmp_path / "out.json"]).main()
        content = json.loads((tmp_path / "out.json").read_text())
        candidates = content["scans"][0]["candidates"]
        calibrated = [one["probability_calibrated"] for one in candidates]
        if known:
            assert content["model"]["thresholds"] == {
                "sensitivity 0.9": 0.25,
                "1 false positive per scan": 0.9,
                "4 false positives per scan": 0.75,
            }
            assert content["model"]["calibration"] == calibration
            raw = np.array([one["probability"] for one in candidates])
            wanted = Calibration(**calibration).apply(log_odds_of_probability(raw))
            np.testing.assert_allclose(calibrated, wanted, atol=1e-5)
        else:
            assert content["model"]["thresholds"] == {}
            assert calibrated == [None] * len(CENTERS)


def test_bundle_command(tmp_path, weights, voxels, geometry, expected, monkeypatch, repository):
    """The zoo's way, in a folder where there is nothing else."""
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "a.mhd"))
    points = write_points(tmp_path / "points.csv", geometry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    folder = repository / "bundle" / "configs"
    workflow = ConfigWorkflow(
        config_file=str(folder / "inference.yaml"),
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        scan="a.mhd",
        candidates=str(points),
        weights=str(weights),
        output="out.json",
    )
    workflow.initialize()
    assert workflow.check_properties() in ([], None)
    workflow.run()
    np.testing.assert_allclose(probabilities(json.loads((tmp_path / "out.json").read_text())), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- many scans
@pytest.fixture
def scans(tmp_path, write_dicom, voxels, geometry):
    """A list of four scans, the second of which is truncated and the third missing, and their candidates."""
    for name in ("1.2.3", "cut"):
        sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / f"{name}.mhd"))
    (tmp_path / "cut.raw").write_bytes((tmp_path / "cut.raw").read_bytes()[:1000])
    write_dicom(tmp_path / "study" / "1", voxels, geometry)
    write_dicom(tmp_path / "study" / "2", voxels[:, :, ::-1], geometry, seriesuid="1.2.826.8")
    (tmp_path / "scans.csv").write_text(
        "seriesuid,path\n1.2.3,1.2.3.mhd\nx,cut.mhd\ny,gone.nii.gz\n1.2.826.7,study\n1.2.826.8,study\n"
    )
    tables = [pd.read_csv(write_points(tmp_path / "points.csv", geometry, seriesuid=uid)) for uid in ("1.2.3", "9.9.9")]
    tables.append(tables[0].assign(seriesuid="1.2.826.7"))
    pd.concat(tables).to_csv(tmp_path / "points.csv", index=False)
    return tmp_path / "scans.csv", tmp_path / "points.csv"


def test_bad_scans_of_a_list_do_not_stop_the_others(scans, tmp_path, weights, capsys, expected):
    path, points = scans
    outputs = ["--output", tmp_path / "out.json", "--output", tmp_path / "out.csv"]
    outputs += ["--output", tmp_path / "{seriesuid}.mrk.json"]
    capsys.readouterr()
    assert run_app(LunaPredictApp, [path, "--candidates", points, "--weights", weights, *outputs]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(
        "luna-monai predict: error: 2 of 5 scans could not be classified, the others are written"
    )
    assert captured.err.count("\n") == 1
    assert f"Scan 2 of 5: {tmp_path / 'cut.raw'}: found 1000 bytes" in captured.out
    assert f"Scan 3 of 5: {tmp_path / 'gone.nii.gz'}: no such file" in captured.out
    content = json.loads((tmp_path / "out.json").read_text())
    assert [scan["seriesuid"] for scan in content["scans"]] == ["1.2.3", "1.2.826.7", "1.2.826.8"]
    for number in (0, 1):
        np.testing.assert_allclose(probabilities(content, number), expected, atol=1e-5)
    assert content["scans"][2]["candidates"] == []
    assert content["scans"][2]["warnings"] == ["no candidates are listed for this scan"]
    assert pd.read_csv(tmp_path / "out.csv")["seriesuid"].value_counts().to_dict() == {"1.2.3": 6, "1.2.826.7": 6}
    marks = {path.name for path in tmp_path.glob("*.mrk.json")}
    assert marks == {"1.2.3.mrk.json", "1.2.826.7.mrk.json", "1.2.826.8.mrk.json"}


def test_files_of_finished_scans_are_kept_after_an_interruption(scans, tmp_path, weights, monkeypatch, capsys):
    """Outputs of single scans are written at once. Outputs of all scans are not written in part. One line is shown."""
    path, points = scans
    load = read_scan

    def interrupt(source):
        if source.path.name == "study":
            raise KeyboardInterrupt
        return load(source)

    monkeypatch.setattr("luna_monai.predictions.scan_dataset.read_scan", interrupt)
    outputs = ["--output", tmp_path / "out" / "{seriesuid}.json", "--output", tmp_path / "out" / "all.csv"]
    assert run_app(LunaPredictApp, [path, "--candidates", points, "--weights", weights, *outputs]) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.2.3.json"]
    captured = capsys.readouterr()
    assert captured.err == "luna-monai predict: interrupted\n"
    assert "terminating" not in captured.out


# torchrun leaves it open.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO name='/dev/null'")
def test_scans_are_divided_among_processes(scans, tmp_path, weights, capfd, without_gpus):
    """Two processes write and log the same as one process, also with bad scans."""
    path, points = scans
    written, said = [], []
    for processes in ([], ["--distributed", 2]):
        out = tmp_path / str(len(written))
        outputs = ["--output", out / "all.json", "--output", out / "{seriesuid}.csv", "--report", out / "all.html"]
        arguments = [path, "--candidates", points, "--weights", weights, *outputs, "report_findings=30"]
        capfd.readouterr()
        assert run_app(LunaPredictApp, [*arguments, *processes]) == 1
        captured = capfd.readouterr()
        assert captured.err.count("\n") == 1
        lines = [captured.err, *re.findall(r"(?:INFO|ERROR) +(Scan \d.*|[\d.]+: .*)", captured.out)]
        said.append(sorted(lines))
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert len(written[0]) == 5
    assert written[0] == written[1]
    assert any("2 of 5 scans could not be classified, the others are written" in line for line in said[0])
    assert said[0] == said[1]


def test_a_dataset_folder(make_dataset, tmp_path, predict):
    dataset_dir = make_dataset(scans=3, candidates=5)
    content = predict(dataset_dir, "--candidates", dataset_dir / "candidates.csv")
    assert [scan["seriesuid"] for scan in content["scans"]] == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
    assert [len(scan["candidates"]) for scan in content["scans"]] == [5, 5, 5]
    one = predict(dataset_dir, "--candidates", dataset_dir / "candidates.csv", "--seriesuid", "1.2.3.1")
    assert one["scans"] == content["scans"][1:2]


def test_a_folder_of_files(tmp_path, predict, voxels, geometry, expected):
    (tmp_path / "many").mkdir()
    for name in ("a.nii.gz", "b.mhd", "ä ö.nrrd"):
        sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "many" / name))
    tables = [pd.read_csv(write_points(tmp_path / "one.csv", geometry, seriesuid=name)) for name in ("a", "b", "ä ö")]
    pd.concat(tables).to_csv(tmp_path / "points.csv", index=False)
    # Read ahead by another process.
    content = predict(tmp_path / "many", "--candidates", tmp_path / "points.csv", "num_workers=1")
    assert [scan["seriesuid"] for scan in content["scans"]] == ["a", "b", "ä ö"]
    for number in range(3):
        np.testing.assert_allclose(probabilities(content, number), expected, atol=1e-5)


def test_no_patient_data_in_outputs(tmp_path, write_dicom, voxels, geometry, weights, capfd):
    tags = {
        "PatientName": "Quux^Erika",
        "PatientID": "MRN-77123",
        "PatientBirthDate": "19480229",
        "PatientAddress": "12 Nowhere Lane",
        "OtherPatientIDs": "ALT-5566",
        "AccessionNumber": "ACC-4711",
        "StudyID": "ST-0815",
        "StudyDate": "20190307",
        "StudyDescription": "Thorax Verlaufskontrolle",
        "SeriesDescription": "Erika lung 1.25",
        "ReferringPhysicianName": "Referrer^Doctor",
        "InstitutionName": "General Hospital",
        "OperatorsName": "Operator^One",
        "DeviceSerialNumber": "SN-9081",
        "ProtocolName": "Quux protocol",
        "ImageComments": "seen by Dr. Who",
    }
    folder = tmp_path / "in" / "Quux_Erika_19480229"
    write_dicom(folder / "ACC-4711", voxels, geometry, tags=tags)
    outputs = [tmp_path / "out" / name for name in ("a.csv", "b.json", "c.mrk.json", "d.dcm")]
    arguments = [word for output in outputs for word in ("--output", output)]
    outputs += [tmp_path / "out" / name for name in ("g.findings.csv", "h.seg.dcm", "i.nii.gz")]
    arguments += [word for output in outputs[4:] for word in ("--output", output)]
    for option, name in (("--report", "e.html"), ("--explain", "f.nii")):
        outputs.append(tmp_path / "out" / name)
        arguments += [option, outputs[-1]]
    points = write_points(tmp_path / "points.csv", geometry)
    capfd.readouterr()
    LunaPredictApp([folder, "--candidates", points, "--weights", weights, "--threshold", 0, *arguments]).main()
    captured = capfd.readouterr()
    # DICOM objects go where the images are, see tests/predictions/test_dicom_objects.py.
    said = [output.read_bytes().decode("latin-1") for output in outputs if output.suffix != ".dcm" and output.exists()]
    told = captured.out + captured.err + "".join(said)
    words = {word for value in tags.values() for word in re.split(r"[\^ ]", value) if len(word) > 4}
    for word in (*tags.values(), *words, str(tmp_path / "in"), "Quux", "Erika"):
        assert word not in told, word
    assert (tmp_path / "out" / "d.dcm").exists()
    assert told.count("1.2.826.7") >= len(CENTERS)


#: Runs commands, and prints for each how often a file below a folder is opened and a folder is listed.
COUNT_READS = """
import collections, json, os, sys
def count(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, os.PathLike)):
        path = os.path.abspath(os.fspath(arguments[0]))
        if path.startswith(folder):
            counts[os.path.relpath(path, folder)] += 1
from luna_monai.apps.cli import main
jobs, results = json.loads(sys.argv[1]), []
folder, counts = os.devnull, collections.Counter()
sys.addaudithook(count)
for folder, *command in jobs:
    counts = collections.Counter()
    assert main(command) == 0
    results.append(counts)
print("reads:", json.dumps(results))
"""


def test_each_file_is_read_once(tmp_path, write_dicom, voxels, geometry, weights):
    """A DICOM slice is opened twice: for its tags, and for its pixels. The patient's tags are those of one slice."""
    files = [file.name for file in write_dicom(tmp_path / "dicom", voxels, geometry)]
    for name in ("luna/subset0", "files"):
        (tmp_path / name).mkdir(parents=True)
        sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / name / "a.mhd"))
    points = write_points(tmp_path / "points.csv", geometry)
    dicom = [word for name in ("x.dcm", "x.seg.dcm", "x.findings.csv") for word in ("--output", tmp_path / name)]
    expected = {
        "dicom": {".": 1, **dict.fromkeys(files, 2), files[0]: 3},
        "luna": {".": 1, "subset0": 1, "subset0/a.mhd": 1, "subset0/a.raw": 1},
        "files": {".": 1, "a.mhd": 1, "a.raw": 1},
    }
    options = ["--candidates", points, "--weights", weights, "--threshold", "0"]
    jobs = []
    for name in expected:
        outputs = ["--report", tmp_path / f"{name}.html", *(dicom if name == "dicom" else ())]
        jobs.append([*map(str, (tmp_path / name, "predict", tmp_path / name, *outputs, *options))])
    command = [sys.executable, "-c", COUNT_READS, json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.partition("reads: ")[2]) == [*expected.values()]


def test_froc_of_a_dataset_folder(tmp_path, weights, voxels, geometry, capfd):
    (tmp_path / "data" / "subset0").mkdir(parents=True)
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "data" / "subset0" / "a.mhd"))
    write_points(tmp_path / "data" / "annotations.csv", geometry, seriesuid="a", diameter_mm=5.0)
    points = write_points(tmp_path / "points.csv", geometry, seriesuid="a")
    arguments = ["--weights", weights, "--candidates", points, "--froc", tmp_path / "froc.json", "examine=null"]
    LunaPredictApp([tmp_path / "data", *arguments]).main()
    content = json.loads((tmp_path / "froc.json").read_text())
    assert set(content) == {"candidates", "findings"}
    assert content["candidates"]["true_positives"] == len(CENTERS)
    assert "FROC of the findings: 6 nodules in 1 scans" in capfd.readouterr().out
    with pytest.raises(LunaError, match=r"annotations\.csv"):
        LunaPredictApp([tmp_path / "data" / "subset0" / "a.mhd", *arguments]).main()
    with pytest.raises(LunaError, match="data: is a folder; give the name of a file"):
        LunaPredictApp([tmp_path / "data", *arguments, "--froc", tmp_path / "data"]).main()


def test_golden_probabilities(luna16_mini, golden, shared_data, tmp_path):
    """The probabilities of the book's weights on real scans equal those of the book's code."""
    LunaPredictApp(
        [
            *(luna16_mini, "--candidates", luna16_mini / "candidates.csv", "--output", tmp_path / "out.csv"),
            *("--weights", shared_data / "book" / "luna_model_2020.state"),
        ]
    ).main()
    place = ["seriesuid", "coordX", "coordY", "coordZ"]
    wanted = pd.DataFrame(golden["center_xyz"], columns=place[1:]).assign(seriesuid=golden["seriesuid"])
    wanted["wanted"] = golden["probabilities"][:, 1]
    joined = pd.read_csv(tmp_path / "out.csv", **EXACTLY).merge(wanted, on=place, validate="one_to_one")
    assert len(joined) == 620
    np.testing.assert_allclose(joined["probability"], joined["wanted"], atol=1e-4)


def test_a_real_scan_in_several_formats(luna16_mini, shared_data, tmp_path, write_dicom):
    """A part of a real scan around its nodule."""
    nodule = pd.read_csv(luna16_mini / "annotations.csv").iloc[0]
    source = next(luna16_mini.glob(f"subset*/{nodule['seriesuid']}.mhd"))
    scan = read_scan(source)
    voxels, whole = scan.voxels, scan.geometry
    z, y, x = whole.world_to_index(nodule[["coordX", "coordY", "coordZ"]].to_numpy(dtype=float))[0]
    start = np.array([[z - 20, y - 40, x - 40]])
    voxels = voxels[z - 20 : z + 20, y - 40 : y + 40, x - 40 : x + 40]
    grid = Geometry((80, 80, 40), whole.spacing, tuple(whole.index_to_world(start)[0]), whole.direction)
    image = image_of(voxels, grid)
    sitk.WriteImage(image, str(tmp_path / "d.nii.gz"))
    write_dicom(tmp_path / "dicom", voxels, grid)
    nearby = np.array([[20, 40, 40], [17, 36, 44], [21, 50, 30]])
    table = pd.DataFrame(grid.index_to_world(nearby), columns=["coordX", "coordY", "coordZ"])
    table.to_csv(tmp_path / "points.csv", index=False)
    results = []
    for name in ("d.nii.gz", "dicom"):
        arguments = ["--candidates", tmp_path / "points.csv", "--output", tmp_path / "out.csv"]
        weights = shared_data / "book" / "luna_model_2020.state"
        LunaPredictApp([tmp_path / name, *arguments, "--weights", weights]).main()
        results.append(pd.read_csv(tmp_path / "out.csv")["probability"].to_numpy())
    assert results[0].max() > 0.9
    np.testing.assert_allclose(results, [results[0]] * len(results), atol=1e-5)
    # Without a list, the nodule is among the proposals and the most probable of them.
    arguments = ["--output", tmp_path / "out.json", "--weights", weights]
    LunaPredictApp([tmp_path / "dicom", *arguments]).main()
    (scan,) = json.loads((tmp_path / "out.json").read_text())["scans"]
    assert scan["proposed"]
    assert scan["warnings"] == []
    best = scan["candidates"][0]
    assert np.linalg.norm(np.subtract(best["position"], nodule[["coordX", "coordY", "coordZ"]])) < 5
    np.testing.assert_array_equal(best["voxel"], grid.world_to_index(np.array([best["position"]]))[0])
    assert len(scan["candidates"]) > 5
    positions = np.array([one["position"] for one in scan["findings"][:8]])
    distances = np.linalg.norm(positions - nodule[["coordX", "coordY", "coordZ"]].to_numpy(dtype=float), axis=1)
    found = scan["findings"][int(distances.argmin())]
    assert distances.min() < nodule["diameter_mm"] / 2
    assert found["diameter_mm"] == pytest.approx(nodule["diameter_mm"], rel=0.25)


@pytest.fixture(scope="session")
def chest():
    """A box of lung in tissue with three balls in it, and a vessel."""
    voxels = np.full((50, 90, 100), 30, dtype=np.int16)
    voxels[6:44, 10:80, 8:92] = np.random.default_rng(1).normal(-860, 10, (38, 70, 84)).round()
    z, y, x = np.indices(voxels.shape)
    for center, radius in (((20, 30, 40), 4), ((30, 55, 60), 3), ((14, 60, 25), 5)):
        mm = np.sqrt(((z - center[0]) * 1.25) ** 2 + ((y - center[1]) * 0.75) ** 2 + ((x - center[2]) * 0.75) ** 2)
        voxels[mm <= radius] = 40
    return voxels


def test_the_same_findings_from_every_format_and_order_of_axes(chest, tmp_path, write_dicom, weights, geometry):
    # Numbers that float32, in which NIfTI keeps them, holds exactly.
    grid = Geometry((100, 90, 50), (0.75, 0.75, 1.25), (-166.5, -171.25, -340.75), geometry.direction)
    image = image_of(chest, grid)
    write_dicom(tmp_path / "dicom", chest, grid)
    axes = {"a.mhd": "LPS", "b.nii.gz": "RAI", "c.nrrd": "ASL"}
    for name, order in axes.items():
        sitk.WriteImage(sitk.DICOMOrient(image, order), str(tmp_path / name))
    found = {}
    for name in ("dicom", *axes):
        outputs = ["--output", tmp_path / "out.json", "--output", tmp_path / "out.nii"]
        arguments = ["--weights", weights, "--threshold", 0, "proposer#max_candidates=20"]
        LunaPredictApp([tmp_path / name, *arguments, *outputs]).main()
        (scan,) = json.loads((tmp_path / "out.json").read_text())["scans"]
        found[name] = scan["findings"]
        labels = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "out.nii")), "LPS"))
        for number, one in enumerate(scan["findings"][:20], start=1):
            if one["volume_mm3"] is not None:
                assert (labels == number).sum() * 0.75 * 0.75 * 1.25 == pytest.approx(one["volume_mm3"], rel=1e-3)
    first = found.pop("dicom")
    assert any(one["diameter_mm"] for one in first)
    for name, others in found.items():
        assert len(others) == len(first), name
        for one, other in zip(first, others, strict=True):
            for key in set(one) - {"voxel", "candidate_indices"}:
                assert other[key] == pytest.approx(one[key], abs=2e-3), (name, key)


def test_an_impossible_output_is_reported_before_the_prediction(
    tmp_path, write_dicom, voxels, geometry, weights, capfd
):
    write_dicom(tmp_path / "dicom", voxels, geometry, tags={"FrameOfReferenceUID": None})
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "a.mhd"))
    points = write_points(tmp_path / "points.csv", geometry)
    for scan, reason in (("dicom", "FrameOfReferenceUID is missing"), ("a.mhd", "not a DICOM series")):
        out = tmp_path / f"out-{scan}"
        outputs = ["--output", out / "x.dcm", "--output", out / "x.csv"]
        capfd.readouterr()
        assert run_app(LunaPredictApp, [tmp_path / scan, "--candidates", points, "--weights", weights, *outputs]) == 1
        captured = capfd.readouterr()
        assert captured.err.startswith("luna-monai predict: error: cannot write x.dcm: ")
        assert reason in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out.index(reason) < captured.out.index("Scans ----")
        assert [path.name for path in out.iterdir()] == ["x.csv"]


@pytest.mark.parametrize(
    ("scan", "output"),
    [
        ("scans", "scans/{seriesuid}.nii.gz"),
        ("scan.nii.gz", "scan.nii.gz"),
        ("list.csv", "list.csv"),
        ("scan.nii.gz", "points.csv"),
        ("dicom", "dicom/1.2.826.7-003.dcm"),
        ("dicom", "new/link.dcm"),
    ],
)
def test_an_output_does_not_replace_an_input(scan, output, tmp_path, write_dicom, voxels, geometry, weights, capfd):
    write_dicom(tmp_path / "dicom", voxels, geometry)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "link.dcm").symlink_to(tmp_path / "dicom" / "1.2.826.7-001.dcm")
    (tmp_path / "scans").mkdir()
    for folder in (tmp_path, tmp_path / "scans"):
        sitk.WriteImage(image_of(voxels, geometry), str(folder / "scan.nii.gz"))
    points = write_points(tmp_path / "points.csv", geometry)
    (tmp_path / "list.csv").write_text("path\nscan.nii.gz\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    words = [tmp_path / scan, "--candidates", points, "--weights", weights, "--output", tmp_path / output]
    assert run_app(LunaPredictApp, words) == 1
    assert "an output would replace this file, which is read; choose another name" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_link_to_an_output_stays_a_link(tmp_path, voxels, geometry, predict):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "scan.mhd"))
    (tmp_path / "link.csv").symlink_to("results.csv")
    points = write_points(tmp_path / "points.csv", geometry)
    for _ in range(2):
        predict(tmp_path / "scan.mhd", "--candidates", points, "--output", tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "results.csv").read_text().startswith("seriesuid,")


def test_an_overlay_can_set_the_weights(tmp_path, voxels, geometry, weights):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "scan.mhd"))
    points = write_points(tmp_path / "points.csv", geometry)
    (tmp_path / "overlay.yaml").write_text(f"weights: {weights}\n")
    words = ["--candidates", points, "--config", tmp_path / "overlay.yaml", "--output", tmp_path / "a.json"]
    assert run_app(LunaPredictApp, [tmp_path / "scan.mhd", *words]) == 0
    model = json.loads((tmp_path / "a.json").read_text())["model"]
    assert model["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_outputs_in_the_folder_of_the_scan_are_replaced_by_the_next_run(
    tmp_path, write_dicom, voxels, geometry, weights
):
    write_dicom(tmp_path / "dicom", voxels, geometry)
    points = write_points(tmp_path / "points.csv", geometry)
    names = ("a.json", "a.csv", "a.dcm", "a.findings.csv")
    outputs = [word for name in names for word in ("--output", tmp_path / "dicom" / name)]
    for _ in range(2):
        words = [tmp_path / "dicom", "--candidates", points, "--weights", weights, "--threshold", 0, *outputs]
        assert run_app(LunaPredictApp, words) == 0


def test_the_tables_of_the_evaluation_are_inputs(tmp_path, write_dataset, weights, capfd):
    luna = write_dataset(tmp_path / "luna", scans=1)
    before = (luna / "annotations.csv").read_bytes()
    words = [luna, "--candidates", luna / "candidates.csv", "--weights", weights, "--froc", tmp_path / "froc.json"]
    assert run_app(LunaPredictApp, [*words, "--output", luna / "annotations.csv"]) == 1
    assert "annotations.csv: an output would replace this file, which is read" in capfd.readouterr().err
    assert (luna / "annotations.csv").read_bytes() == before


def test_two_folders_with_the_same_series(tmp_path, write_dicom, voxels, geometry, weights, capfd):
    for name in ("a", "b"):
        write_dicom(tmp_path / name, voxels, geometry)
    (tmp_path / "list.csv").write_text("path\na\nb\n")
    points = write_points(tmp_path / "points.csv", geometry, seriesuid="1.2.826.7")
    outputs = ["--output", tmp_path / "{seriesuid}.json", "--output", tmp_path / "all.json"]
    assert run_app(LunaPredictApp, [tmp_path / "list.csv", "--candidates", points, "--weights", weights, *outputs]) == 1
    captured = capfd.readouterr()
    assert "two scans have the series UID 1.2.826.7; remove one of them" in captured.err
    assert captured.out.count("Written: ") == 2
    assert len(json.loads((tmp_path / "all.json").read_text())["scans"]) == 1


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd"])
def test_a_volume_that_the_disk_cannot_hold_is_an_error(ending, tmp_path, monkeypatch):
    """ITK does not report a full disk."""
    image = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 9, (20, 30, 40), dtype=np.uint8))
    write = sitk.WriteImage

    def write_a_part(image, path, **options):
        write(image, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)

    monkeypatch.setattr(sitk, "WriteImage", write_a_part)
    with pytest.raises(LunaError, match=rf"a{ending}: cannot be written .*; free some space"):
        write_volume(tmp_path / "new" / f"a{ending}", image)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_name_that_is_not_valid_unicode(tmp_path, predict, voxels, geometry, weights):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "a.nii"))
    scan = (tmp_path / "a.nii").rename(tmp_path / os.fsdecode(b"M\xfcller.nii"))
    points = write_points(tmp_path / "points.csv", geometry)
    outputs = ["--report", tmp_path / "page.html", "--output", tmp_path / "more.csv"]
    other = shutil.copy(weights, tmp_path / os.fsdecode(b"M\xfcller.pt"))
    found = predict(scan, "--candidates", points, *outputs, "--weights", other)
    assert found["scans"][0]["seriesuid"] == "M\ufffdller"
    assert "M\ufffdller" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "M\ufffdller" in (tmp_path / "more.csv").read_text(encoding="utf-8")


def test_names_that_the_console_cannot_show(tmp_path, voxels, geometry, weights):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "山.nii.gz"))
    points = write_points(tmp_path / "points.csv", geometry)
    words = [tmp_path / "山.nii.gz", "--candidates", points, "--weights", weights, "--output", tmp_path / "王.json"]
    command = [sys.executable, "-m", "luna_monai", "predict", *map(str, words)]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Written: " in done.stdout
    assert (tmp_path / "王.json").is_file()


def test_outputs_of_the_bundle_are_in_its_output_dir(tmp_path, weights, voxels, geometry):
    sitk.WriteImage(image_of(voxels, geometry), str(tmp_path / "a.mhd"))
    points = write_points(tmp_path / "points.csv", geometry)
    arguments = ["--candidates", points, "--weights", weights, "--output-dir", tmp_path / "new"]
    LunaPredictApp([tmp_path / "a.mhd", *arguments, "--output", "a.csv", "--output", tmp_path / "b.csv"]).main()
    assert (tmp_path / "new" / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_scan_without_a_chest_has_a_warning(tmp_path, predict, voxels, geometry):
    sitk.WriteImage(image_of(np.zeros_like(voxels) + 40, geometry), str(tmp_path / "a.mhd"))
    content = predict(tmp_path / "a.mhd", "examine=$luna_monai.detection.chest_warnings")
    assert content["scans"][0]["candidates"] == []
    (warning,) = content["scans"][0]["warnings"]
    assert warning.startswith("The scan does not seem to show the chest")
    assert warning.endswith(": 0 ml of lung, 0.0% of the body; 100.0% soft tissue and bone; values from 40 to 40.")


# ----------------------------------------------------------------------------------------------------- damaged input
@pytest.fixture
def place(tmp_path, voxels, geometry, write_dicom, weights):
    """A folder with one undamaged scan in several formats, candidates and weights."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mhd", "b.nii", "c.nii.gz", "d.nrrd"):
        sitk.WriteImage(image_of(voxels, geometry), str(folder / name))
    sitk.WriteImage(image_of(voxels, geometry), str(folder / "z.mhd"), useCompression=True)
    write_points(folder / "points.csv", geometry)
    return folder


def cut(path, keep=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def write(content):
    return lambda path: path.write_bytes(content) and None


#: One of each kind of scan; tests/scans/test_malformed.py has the others.
FILES = {
    "missing file": ("gone.nii", lambda path: None, r"gone\.nii: no such file or folder"),
    "truncated voxels": ("a.mhd", lambda path: cut(path.with_suffix(".raw")), r"a\.raw: found .* truncated"),
    "missing voxels": ("a.mhd", lambda path: path.with_suffix(".raw").unlink(), r"a\.raw: no such file"),
    "truncated compressed voxels": ("z.mhd", lambda path: cut(path.with_suffix(".zraw")), r"z\.zraw: found .* truncat"),
    "truncated gzip": ("c.nii.gz", cut, r"c\.nii\.gz: contains \d+ bytes when decompressed.*truncated"),
    "a picture called NIfTI": ("b.nii", write(b"\xff\xd8\xff\xe0" + b"JFIF" * 200), r"b\.nii: not a NIfTI file"),
    "truncated NRRD": ("d.nrrd", cut, r"d\.nrrd: found \d+ bytes of voxels, expected"),
    "a text": ("notes.txt", write(b"no scan"), r"notes\.txt: not a scan; supported:"),
    "an empty DICOM file": ("one.dcm", write(b""), r"one\.dcm: a damaged DICOM slice"),
    "an empty folder": ("empty", lambda path: path.mkdir(), r"empty: no DICOM slices of a CT in this folder"),
    "an empty list": ("list.csv", write(b""), r"list\.csv: the file is empty"),
    "a list of nothing": ("list.csv", write(b"path\n"), r"list\.csv: contains no scan"),
    "a table that is no list": ("points.csv", lambda path: None, r"points\.csv: no column 'path'"),
    "a list of lists": ("list.csv", write(b"path\nlist.csv\n"), r"list\.csv: unknown file type"),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_scans(kind, place, tmp_path, weights, capfd):
    name, change, message = FILES[kind]
    change(place / name)
    refused(message, capfd, place / name, "--candidates", place / "points.csv", "--weights", weights)


def refused(message, capfd, *arguments):
    """Check that there is one line, exit code 1, and no output, not even a part of one."""
    output = Path(arguments[-1]).parent / "results" / "out.json"
    if "--output" not in arguments:
        arguments = (*arguments, "--output", output)
    capfd.readouterr()
    assert run_app(LunaPredictApp, arguments) == 1
    error = capfd.readouterr().err
    assert error.startswith("luna-monai predict: error: ")
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert not output.parent.exists()


DICOM_DAMAGE = {
    "missing slice": (
        lambda files: files[20].unlink(),
        r"slices are missing, duplicated or unevenly spaced: .*-017\.dcm and .*-015\.dcm",
    ),
    "truncated slice": (lambda files: cut(files[-1]), r"1\.2\.826\.7-001\.dcm: a damaged DICOM slice"),
}


@pytest.mark.parametrize("kind", DICOM_DAMAGE)
def test_damaged_dicom(kind, tmp_path, write_dicom, voxels, geometry, weights, capfd):
    change, message = DICOM_DAMAGE[kind]
    change(write_dicom(tmp_path / "dicom", voxels, geometry))
    points = write_points(tmp_path / "points.csv", geometry)
    refused(message, capfd, tmp_path / "dicom", "--candidates", points, "--weights", weights)


STRANGE_TAGS = {
    "no position": ({"ImagePositionPatient": None}, r"missing tags: ImagePositionPatient"),
    "another modality": (
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"},
        r"dicom: no DICOM slices of a CT in this folder; .*other images: MR Image Storage",
    ),
}


@pytest.mark.parametrize("kind", STRANGE_TAGS)
def test_unsupported_dicom(kind, tmp_path, write_dicom, voxels, geometry, weights, capfd):
    tags, message = STRANGE_TAGS[kind]
    write_dicom(tmp_path / "dicom", voxels[:8], geometry, tags=tags)
    points = write_points(tmp_path / "points.csv", geometry)
    refused(message, capfd, tmp_path / "dicom", "--candidates", points, "--weights", weights)


def test_damaged_candidates(place, weights, capfd):
    head = "seriesuid,coordX,coordY,coordZ\n"
    for content, message in (
        (None, r"list\.csv: no such file or folder"),
        ("", r"list\.csv: the file is empty"),
        (head, r"list\.csv: no candidates of scan a"),
        ("x,y,z\n1,2,3\n", r"list\.csv: no column 'coordX', 'coordY', 'coordZ' in the header line"),
        (head + "a,1,two,3\n", r"list\.csv, line 2: 'coordY' must be a number, found 'two'"),
        (head + "a,1,nan,3\n", r"list\.csv, line 2: 'coordY' must be a number, found nothing"),
        (head + "1.2.3,-150,-150,-320\n", r"list\.csv: no candidates of scan a"),
        (
            head + "\nb,0,0,0\n\na,-150,-150,-320\na,150,150,-320\n",
            r"list\.csv, line 6: \[150\.0, 150\.0, -320\.0\] in lps is voxel .*, outside scan a; .* ras, voxel",
        ),
    ):
        path = place / "list.csv"
        if content is not None:
            path.write_text(content)
        refused(message, capfd, place / "a.mhd", "--candidates", path, "--weights", weights)


def test_damaged_weights(place, tmp_path, capfd):
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "linear.pt")
    network = LunaModel()
    network.head_linear.bias.data[:] = float("nan")
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage")
    for name, message in (
        ("gone.pt", r"gone\.pt: no such file"),
        ("garbage.pt", r"garbage\.pt: cannot be read as weights"),
        ("linear.pt", r"linear\.pt: weights of another network"),
        ("nan.pt", r"nan\.pt: head_linear\.bias holds values that are not finite"),
    ):
        refused(message, capfd, place / "a.mhd", "--candidates", place / "points.csv", "--weights", tmp_path / name)


def test_mistaken_commands(place, tmp_path, weights, geometry, capfd):
    write_points(place / "points.csv", geometry, seriesuid="a")
    (tmp_path / "folder.json").mkdir()
    (place / "list.csv").write_text("path\na.mhd\nb.nii\n")
    (place / "twice.csv").write_text("path,seriesuid\na.mhd,a\nb.nii,a\n")
    given = ["--candidates", place / "points.csv", "--weights", weights]
    for arguments, message in (
        (
            [place / "a.mhd", "--output", "out.txt"],
            r"out\.txt: the file name must end with \.csv or \.findings\.csv or \.json",
        ),
        ([place / "a.mhd", "--output", tmp_path / "folder.json"], r"folder\.json: is a folder; give the name"),
        (
            [place / "a.mhd", "--output", place / "a.mhd" / "x.csv"],
            r"x\.csv: cannot write to the folder .*a\.mhd \(Not a directory\)",
        ),
        ([place / "a.mhd", "--output", "x.csv", "--output", "./x.csv"], r"x\.csv: 2 outputs have this name; give them"),
        ([place / "a.mhd", "--output", "x.nii", "--explain", "x.nii"], r"x\.nii: 2 outputs have this name"),
        ([place / "a.mhd", "--output", "a.json", "--output", "{seriesuid}.json"], r"a\.json: 2 outputs have this name"),
        ([place / "a.mhd", "--output", "{seriesuid}/x.json"], r"x\.json: \{seriesuid\} is replaced only in the names"),
        (
            [place / "a.mhd", "--report", "{seriesuid}.html"],
            r"html: \{seriesuid\} is replaced only in the names of files",
        ),
        (
            [place / "list.csv", "--output", "x.mrk.json"],
            r"x\.mrk\.json: this format holds one scan, found 2; put \{series",
        ),
        (
            [place / "a.mhd", "--output", "x.dcm"],
            r"a\.mhd: not a DICOM series, so no DICOM output",
        ),
        (
            [place / "a.mhd", "--output", "x.csv", "--threshold", 1.5],
            r"threshold: 1\.5 is greater than the maximum of 1",
        ),
        (
            [place / "a.mhd", "--output", "x.csv", "--max-findings", -1],
            r"max_findings: -1 is less than the minimum of 1",
        ),
        ([place / "list.csv", "--output", "x.dcm"], r"x\.dcm: this format holds one scan, found 2"),
        ([place / "twice.csv", "--output", "x.csv"], r"two scans have the name a; give them different names"),
        ([place / "a.mhd", "--report", "x.pdf"], r"x\.pdf: the file name must end with \.html"),
        (
            [place / "a.mhd", "--report", "x.html", "report_findings=-1"],
            r"report_findings: -1 is less than the minimum of 1",
        ),
        ([place / "a.mhd", "--explain", "x.mhd"], r"x\.mhd: the file name must end with \.nii\.gz or \.nii"),
        ([place / "list.csv", "--explain", "x.nii.gz"], r"x\.nii\.gz: --explain supports one scan, found 2"),
        ([place / "a.mhd", place / "b.nii"], r"b\.nii': an override has the form key=value"),
        ([place / "a.mhd", "weigths=1"], r"'weigths' is not a key of the configuration; did you mean 'weights'"),
        ([place / "a.mhd", "--seriesuid", "1.2"], r"a\.mhd: contains no scan of series 1\.2"),
        ([place / "a.mhd", "batch_size=0"], r"batch_size: 0 is less than the minimum of 1"),
    ):
        refused(message, capfd, *arguments, *given)
    plain = write_points(place / "plain.csv", geometry)
    refused(r"plain\.csv: no column 'seriesuid'", capfd, place / "list.csv", "--candidates", plain, *given[2:])
    assert run_app(LunaPredictApp, [place / "a.mhd", *given]) == 1
    assert "no output file; give at least one" in capfd.readouterr().err
