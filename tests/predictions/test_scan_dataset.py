"""What a dataset of scans asks of those who look at a scan."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_monai.predictions import ScanDataset, ScanLoader
from luna_monai.predictions import scan_dataset as prediction_scans
from luna_monai.scans import list_scans
from luna_monai.transforms import CropCandidates, CropCandidatesd, LoadScand


@pytest.mark.parametrize(("listed", "examined"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_lungs_are_segmented_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool, examined: bool
) -> None:
    voxels = np.full((40, 60, 60), 30, dtype=np.int16)
    voxels[5:35, 10:50, 10:50] = -850
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "scan.mha"))
    points = pd.DataFrame([[10.0, 20.0, 30.0]], columns=["coordX", "coordY", "coordZ"])
    points.to_csv(tmp_path / "points.csv", index=False)
    find_lungs = Mock(wraps=prediction_scans.find_lungs)
    monkeypatch.setattr(prediction_scans, "find_lungs", find_lungs)
    proposer, examine = Mock(return_value=points), Mock(return_value=["odd"])

    candidates = tmp_path / "points.csv" if listed else None
    item = ScanDataset(
        list_scans(tmp_path / "scan.mha"), candidates, proposer=proposer, examine=examine if examined else None
    )[0]

    assert item["points"].tolist() == points.to_numpy().tolist()
    assert item["warnings"] == ("odd",) * examined
    assert (proposer.call_count, examine.call_count) == (not listed, examined)
    assert find_lungs.call_count == 1
    assert all(call.args[2] is item["lungs"] for call in proposer.mock_calls + examine.mock_calls)
    assert item["lungs"].mask.any()


class Slow:
    """A dataset that records which items were requested."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        if index == 4:
            raise MemoryError("no memory")
        return {"number": index}


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_scans_are_read_ahead_in_order_and_errors_are_raised(ahead: int) -> None:
    dataset = Slow()
    loader = ScanLoader(dataset, ahead)  # type: ignore[arg-type]
    assert len(loader) == 5
    items = iter(loader)
    for number in range(4):
        assert next(items)["number"] == number
        deadline = time.monotonic() + 10
        while len(dataset.asked) < min(number + 1 + ahead, 5) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert sorted(dataset.asked) == list(range(min(number + 1 + ahead, 5)))
    with pytest.raises(MemoryError, match="no memory"):
        next(items)


def test_a_sampler() -> None:
    loader = ScanLoader(Slow(), 1, sampler=[3, 1])  # type: ignore[arg-type]
    assert [item["number"] for item in loader] == [3, 1]
    assert len(loader) == 2


@pytest.mark.parametrize(
    "direction", [(-1, 0, 0, 0, -1, 0, 0, 0, 1), (1, 0, 0, 0, 1, 0, 0, 0, -1), (0, 1, 0, 1, 0, 0, 0, 0, 1)]
)
def test_training_and_prediction_crop_the_same_voxels(tmp_path: Path, direction: tuple[float, ...]) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 1000, (60, 64, 70)).astype(np.float32))
    image[20, 30, 25] = float("nan")
    image.SetDirection(direction)
    image.SetSpacing((0.7, 0.7, 1.25))
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(image, str(path))
    corners = [
        image.TransformContinuousIndexToPhysicalPoint(index) for index in ((20, 30, 25), (1.5, 2.5, 50), (66, 9, 3))
    ]
    pd.DataFrame(corners, columns=["coordX", "coordY", "coordZ"]).to_csv(tmp_path / "points.csv", index=False)
    item = ScanDataset(list_scans(path), tmp_path / "points.csv")[0]
    trained = LoadScand("image", "LPS")({"image": str(path), "center_xyz": item["points"].numpy()})
    trained = CropCandidatesd("image", (32, 48, 48))(trained)
    np.testing.assert_array_equal(trained["center_irc"], item["centers"])
    np.testing.assert_array_equal(
        trained["image"], CropCandidates((32, 48, 48))(item["image"], item["centers"].numpy())
    )
    assert item["image"].isfinite().all()
    assert item["warnings"] == ("1 voxels are not finite; they are set to air (-1000 HU)",)
