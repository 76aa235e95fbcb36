"""The files of a prediction: one writer for each kind, and names that never meet."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from luna_monai.errors import LunaError
from luna_monai.files import file_name_of
from luna_monai.networks import LunaModel
from luna_monai.predictions import CandidateInferer, write_outputs
from luna_monai.predictions.outputs import check_outputs
from luna_monai.scans import read_header

from .conftest import make_prediction

INDICES = [(12, 20, 34), (3, 40.4, 9.2), (35, 0, 55)]


@pytest.fixture
def prediction(geometry):
    return dataclasses.replace(make_prediction(geometry, INDICES, [0.9, 0.25, 1.5e-7]), shown=2)


def written(prediction, tmp_path, name):
    files, problems = write_outputs([tmp_path / name], [prediction])
    assert (len(files), problems) == (1, [])
    return files[0]


def test_a_submission_has_a_row_for_each_finding_or_given_candidate(prediction, tmp_path):
    prediction = dataclasses.replace(prediction, findings=prediction.findings[:2])
    for proposed, rows in ((True, 2), (False, 3)):
        table = pd.read_csv(written(dataclasses.replace(prediction, proposed=proposed), tmp_path, "a.csv"))
        assert table.columns.tolist() == ["seriesuid", "coordX", "coordY", "coordZ", "probability"]
        assert len(table) == rows
        assert table["probability"].tolist() == prediction.candidates["probability"].tolist()[:rows]
        np.testing.assert_allclose(table.iloc[0, 1:4].tolist(), prediction.findings[0].position, rtol=1e-15)


def test_the_table_of_findings_has_sizes_if_they_are_known(geometry, tmp_path):
    prediction = dataclasses.replace(make_prediction(geometry, INDICES, [0.91234567890123, 0.25, 1.5e-7]), shown=2)
    table = pd.read_csv(written(prediction, tmp_path, "a.findings.csv"))
    assert table.columns[:2].tolist() == ["seriesuid", "finding"]
    assert table["finding"].tolist() == [1, 2]
    assert table["slice"].tolist() == [13, 4]
    assert table[["probability", "probability_calibrated"]].to_numpy().tolist() == [
        [0.912346, 0.832375],
        [0.25, 0.0625],
    ]
    assert table.loc[0, ["diameter_mm", "volume_mm3", "attenuation", "lung"]].tolist() == [4.5, 48, "solid", "left"]
    assert table.loc[1, ["diameter_mm", "volume_mm3", "attenuation", "lung"]].isna().all()


def test_json_has_all_findings(prediction, tmp_path):
    (scan,) = json.loads(written(prediction, tmp_path, "a.json").read_text())["scans"]
    assert (len(scan["candidates"]), len(scan["findings"])) == (3, 3)
    assert (scan["threshold"], scan["findings_shown"]) == (0.5, 2)
    first, second = scan["findings"][:2]
    assert first["position"] == list(prediction.findings[0].position)
    assert (first["voxel"], first["diameter_mm"], first["candidates"]) == ([12, 20, 34], 4.5, 1)
    assert (first["probability"], first["probability_calibrated"]) == (0.9, pytest.approx(0.81))
    assert second["diameter_mm"] is second["attenuation"] is None


def test_points_of_slicer_are_the_findings_that_are_shown(prediction, tmp_path):
    (markups,) = json.loads(written(prediction, tmp_path, "a.mrk.json").read_text())["markups"]
    assert (markups["type"], markups["coordinateSystem"]) == ("Fiducial", "LPS")
    assert [point["label"] for point in markups["controlPoints"]] == ["1: 0.900, 4.5 mm", "2: 0.250"]
    assert markups["controlPoints"][0]["position"] == list(prediction.findings[0].position)


def test_file_names_of_invalid_series_uids_stay_different(prediction, tmp_path):
    names = ["a/b", "a_b", "a\\b", "a%2Fb", "a:b", "ä ö", "1.2.3"]
    predictions = [dataclasses.replace(prediction, seriesuid=name) for name in names]
    files, problems = write_outputs([tmp_path / "{seriesuid}.json"], predictions)
    assert problems == []
    assert len({path.name for path in tmp_path.iterdir()}) == len(files) == len(names)
    for path, name in zip(files, names, strict=True):
        assert json.loads(path.read_text())["scans"][0]["seriesuid"] == name
    assert [file_name_of(name) for name in ("a/b", "a%2Fb", "1.2.3", "ä ö")] == ["a%2Fb", "a%252Fb", "1.2.3", "ä ö"]
    assert [file_name_of(name) for name in (".a.b.", "a ", "..")] == ["%2Ea.b%2E", "a%20", "%2E%2E"]
    long = [file_name_of("ä" * 300 + end) for end in "ab"]
    assert long[0] != long[1]
    assert all(name.startswith("ää") and len(name.encode()) < 72 for name in long)


def test_other_outputs_are_written_if_one_fails(prediction, tmp_path):
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkInt16), str(tmp_path / "scan.mha"))
    header, out = read_header(tmp_path / "scan.mha"), tmp_path / "out"
    options = {"header": header, "anonymous": False, "segmented": True}
    files, problems = write_outputs([out / "a.dcm", out / "a.seg.dcm", out / "a.csv"], [prediction], **options)
    assert [path.name for path in files] == [path.name for path in out.iterdir()] == ["a.csv"]
    assert [problem.split(":")[0] for problem in problems] == ["cannot write a.dcm", "cannot write a.seg.dcm"]


def test_several_scans_need_formats_for_several_scans(tmp_path):
    check_outputs([tmp_path / name for name in ("a.csv", "a.json", "a.findings.csv", "{seriesuid}.dcm")], scans=2)
    for name in ("a.mrk.json", "a.dcm", "a.seg.dcm", "a.nii.gz", "a.nrrd"):
        with pytest.raises(LunaError, match="this format holds one scan, found 2"):
            check_outputs([tmp_path / name], scans=2)


def test_other_programs_can_classify_cropped_candidates(repository):
    """MONAI Deploy and MONAI Label take preprocessing, inferer and network, and have no list of candidates."""
    parser = ConfigParser()
    parser.read_config(repository / "bundle" / "configs" / "inference.yaml")
    parser.update({"device": "cpu", "network": LunaModel()})
    preprocessing, inferer = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer"))
    assert isinstance(preprocessing, Compose)
    assert isinstance(inferer, CandidateInferer)
    torch.manual_seed(0)
    network = LunaModel().eval()
    crops = torch.randint(-2000, 2000, (5, 1, 32, 48, 48), dtype=torch.int16)
    with torch.no_grad():
        found = inferer(torch.stack([preprocessing(crop) for crop in crops]), network)
        wanted = network(crops.clamp(-1000, 1000).float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_logits_do_not_depend_on_threads_and_batch_size():
    torch.manual_seed(0)
    network, scan = LunaModel().eval(), torch.randint(-1000, 400, (1, 40, 60, 60), dtype=torch.int16)
    centers = torch.stack([torch.arange(7) + 16, torch.arange(7) + 24, torch.arange(7) + 30], dim=1)
    before, found = torch.get_num_threads(), []
    for threads, batch_size in ((1, 128), (2, 2), (3, 128)):
        torch.set_num_threads(threads)
        found.append(CandidateInferer((32, 48, 48), batch_size)(scan, network, centers=centers))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert not found[0].requires_grad
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], rtol=1e-4, atol=1e-4)


def test_overlapping_calls_keep_the_number_of_threads():
    torch.set_num_threads(2)
    inferer, scan, centers = CandidateInferer((4, 4, 4), 1), torch.zeros((1, 8, 8, 8)), torch.full((2, 3), 4)
    calls = []
    for _ in range(2):
        running, finish = threading.Event(), threading.Event()

        def network(image, running=running, finish=finish):
            running.set()
            assert finish.wait(60)
            return torch.zeros((len(image), 2))

        calls.append((threading.Thread(target=inferer, args=(scan, network), kwargs={"centers": centers}), finish))
        calls[-1][0].start()
        assert running.wait(60)
    for call, finish in calls:
        finish.set()
        call.join()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
