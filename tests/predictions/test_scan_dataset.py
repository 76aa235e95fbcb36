"""What a dataset of scans asks of those who look at a scan."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_monai.predictions import CandidateList, ScanDataset
from luna_monai.predictions import scan_dataset as prediction_scans
from luna_monai.scans import list_scans


@pytest.mark.parametrize(("listed", "examined"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_lungs_are_looked_for_once_and_by_need(
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

    candidates = CandidateList(tmp_path / "points.csv") if listed else None
    item = ScanDataset(list_scans(tmp_path / "scan.mha"), candidates, proposer, examine if examined else None)[0]

    assert item["points"].tolist() == points.to_numpy().tolist()
    assert item["warnings"] == ("odd",) * examined
    assert (proposer.call_count, examine.call_count) == (not listed, examined)
    given = [call.args[2] for call in proposer.mock_calls + examine.mock_calls]
    assert find_lungs.call_count == bool(given)
    assert all(lungs is given[0] and lungs.mask.any() for lungs in given)
