"""Heat maps in the space of the scan, as other programs read them."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from luna_monai.predictions.explanation import ScanExplanation, explain_scan, write_heat_map

from luna_monai.errors import LunaError
from luna_monai.predictions.scan_dataset import pad_with_air
from luna_monai.scans import orient
from luna_monai.scans.geometry import Geometry

from .conftest import make_prediction

SPATIAL_SIZE = (32, 48, 48)


def bright(image):
    """Explain a candidate by what is brighter than water in it."""
    return (image[:, 0] > 0).float()


def as_seen(voxels, geometry):
    turned, geometry = orient(voxels, geometry)
    padded, geometry = pad_with_air(turned, geometry, SPATIAL_SIZE)
    return torch.from_numpy(np.array(padded))[None], geometry


#: Axes of the file in other orders and directions, one scan smaller than what is cut out.
DIRECTIONS = {
    "as in LUNA16": (np.eye(3), (56, 52, 36)),
    "supine the other way round": (np.diag([-1.0, -1.0, 1.0]), (56, 52, 36)),
    "sagittal slices": (np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (52, 40, 60)),
    "small": (np.diag([1.0, -1.0, -1.0]), (40, 30, 20)),
}


@pytest.mark.parametrize("case", DIRECTIONS)
def test_the_heat_is_where_the_scan_has_it(case, tmp_path):
    direction, size = DIRECTIONS[case]
    rows = tuple(map(tuple, direction.tolist()))
    geometry = Geometry(size, (0.7, 0.8, 1.25), (-20.0, 35.5, -100.25), rows)
    voxels = np.full(geometry.shape, -850, dtype=np.int16)
    # A shape that no flip or turn leaves as it is.
    voxels[8:14, 10:13, 20:22] = 50
    voxels[8, 10:18, 20] = 60
    image, seen = as_seen(voxels, geometry)
    prediction = make_prediction(geometry, [(10, 11, 21), (0, 0, 0)], [0.9, 0.5])
    heat_map = explain_scan(prediction, image, seen, bright, spatial_size=SPATIAL_SIZE)
    assert heat_map.candidates == 2
    np.testing.assert_array_equal(heat_map.values, np.where(voxels > 0, 255, 0))

    path = tmp_path / "new" / "heat.nii.gz"
    write_heat_map(heat_map, path)
    for_itk = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(for_itk), heat_map.values)
    assert for_itk.GetSpacing() == pytest.approx(geometry.spacing)
    assert for_itk.GetOrigin() == pytest.approx(geometry.origin, abs=1e-4)
    assert for_itk.GetDirection() == pytest.approx(direction.ravel(), abs=1e-6)
    for_nibabel = nibabel.load(path)
    assert for_nibabel.get_fdata().max() == 255
    ras = for_nibabel.affine @ (20, 17, 8, 1)
    assert ras[:3] * (-1, -1, 1) == pytest.approx(geometry.index_to_world(np.array([(8, 17, 20)]))[0], abs=1e-3)
    assert for_nibabel.get_data_dtype() == np.uint8


def test_overlapping_candidates_take_the_higher_value_and_the_rest_is_left_out(geometry, voxels):
    image, seen = as_seen(voxels, geometry)
    strengths = iter([0.5, 1.0])

    def explainer(candidates):
        return torch.stack([bright(one[None])[0] * next(strengths) for one in candidates])

    prediction = make_prediction(geometry, [(12, 20, 34), (13, 21, 35), (30, 2, 2)], [0.9, 0.8, 0.7])
    heat_map = explain_scan(prediction, image, seen, explainer, max_candidates=2)
    np.testing.assert_array_equal(heat_map.values, np.where(voxels > 0, 255, 0))


def test_preprocessing_comes_first_and_without_candidates_there_is_no_heat(geometry, voxels):
    image, seen = as_seen(voxels, geometry)
    prediction = make_prediction(geometry, [(12, 20, 34)], [0.9])
    heat_map = explain_scan(prediction, image, seen, bright, preprocessing=lambda image: image * 0)
    assert not heat_map.values.any()
    nothing = explain_scan(make_prediction(geometry, [], []), image, seen, bright)
    assert (nothing.candidates, nothing.values.any()) == (0, False)


def test_the_same_heat_map_gives_the_same_bytes(geometry, voxels, tmp_path):
    image, seen = as_seen(voxels, geometry)
    heat_map = explain_scan(make_prediction(geometry, [(12, 20, 34)], [0.9]), image, seen, bright)
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        write_heat_map(heat_map, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == (tmp_path / "c.nii").read_bytes()


@pytest.mark.parametrize("name", ["heat.mhd", "heat", ".nii.gz", "heat.nii.gz.txt"])
def test_other_endings_are_refused(name):
    with pytest.raises(LunaError, match=r"ends with \.nii\.gz or \.nii"):
        ScanExplanation(name, bright).check(scans=1)


def test_folders_in_the_way_and_several_scans_are_refused(tmp_path):
    (tmp_path / "heat.nii").mkdir()
    with pytest.raises(LunaError, match=r"heat\.nii: a folder"):
        ScanExplanation(tmp_path / "heat.nii", bright).check(scans=1)
    other = ScanExplanation(tmp_path / "other.NII.gz", bright)
    other.check(scans=1)
    with pytest.raises(LunaError, match=r"one scan, and there are 3"):
        other.check(scans=3)
    assert other.write() == []
    with pytest.raises(LunaError, match="at least 1, found 0"):
        ScanExplanation("heat.nii", bright, max_candidates=0)
