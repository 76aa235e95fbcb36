"""Training in bfloat16 learns as training in float32 does."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch

from luna_monai.data.tables import COORDINATES
from luna_monai.training import has_bfloat16

EPOCHS = 5
CROP = (32, 48, 48)


def write_scan(folder, number, rows, columns, random):
    """Write a CT of noise with nodules (balls) and vessels (tubes across the slices) in alternating order."""
    voxels = random.normal(-800, 120, (CROP[0], rows * CROP[1], columns * CROP[2]))
    z, y, x = np.ogrid[tuple(slice(size) for size in CROP)]
    candidates = []
    for place in range(rows * columns):
        top, left = place // columns * CROP[1], place % columns * CROP[2]
        center = np.array(CROP) / 2 + random.uniform(-2, 2, 3)
        is_nodule, radius = place % 2 == 0, random.uniform(3, 6)
        distance = (y - center[1]) ** 2 + (x - center[2]) ** 2
        shape = distance + (z - center[0]) ** 2 < radius**2 if is_nodule else distance + 0 * z < (radius / 1.5) ** 2
        voxels[:, top : top + CROP[1], left : left + CROP[2]][shape] += 800
        world = left + CROP[2] / 2, top + CROP[1] / 2, CROP[0] / 2  # x, y, z: voxels of 1 mm, from the origin
        candidates.append((f"1.2.3.{number}", *world, int(is_nodule)))
    subset = folder / f"subset{number}"
    subset.mkdir(parents=True)
    image = sitk.GetImageFromArray(voxels.clip(-1000, 1000).astype(np.int16))
    sitk.WriteImage(image, str(subset / f"1.2.3.{number}.mhd"))
    return candidates


@pytest.fixture
def dataset_dir(tmp_path):
    """Write 36 candidates to train on and 4 to validate on."""
    folder, random = tmp_path / "luna", np.random.default_rng(0)
    rows = write_scan(folder, 0, 2, 2, random) + write_scan(folder, 1, 6, 6, random)
    table = pd.DataFrame(rows, columns=["seriesuid", *COORDINATES, "class"])
    table.to_csv(folder / "candidates.csv", index=False)
    nodules = table.loc[table["class"] == 1, ["seriesuid", *COORDINATES]]
    nodules.assign(diameter_mm=9.0).to_csv(folder / "annotations.csv", index=False)
    return folder


@pytest.fixture
def loss_curve(make_workflow, dataset_dir, tmp_path):
    """Return a function that trains by the bundle's configuration and returns the training loss of each epoch."""

    def train(name, **overrides):
        workflow = make_workflow(
            **{
                "dataset_dir": str(dataset_dir),
                "cache_dir": str(tmp_path / "cache"),
                "output_dir": str(tmp_path / name),
                "device": "$torch.device('cpu')",
                "precache_workers": 0,
                "network_def#conv_channels": 4,
                "train#augmentation": None,
                "batch_size": 6,
                "max_epochs": EPOCHS,
                "val_interval": EPOCHS,
                # Most of these steps are smaller than the distance from a weight of bfloat16 to the next one.
                "optimizer#lr": 1e-4,
                **overrides,
            }
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return pd.read_csv(tmp_path / name / "metrics.csv").query("split == 'trn'")["loss/all"].to_numpy()

    return train


@pytest.mark.skipif(
    not has_bfloat16(torch.device("cpu")), reason="this processor computes bfloat16 in software, which takes minutes"
)
def test_the_loss_curve_in_bfloat16_is_within_the_noise_of_float32(loss_curve):
    """The noise is the effect of another order of the samples. The initial weights are the same."""
    curves = [loss_curve(f"order{seed}", precision="float32", **{"train#sampler#seed": seed}) for seed in (42, 1)]
    bfloat16 = loss_curve("bfloat16", precision="bfloat16", **{"train#sampler#seed": 42})

    def distance(first, second):
        return float(np.sqrt(np.mean((first - second) ** 2)))

    noise = distance(*curves)
    for curve in (*curves, bfloat16):
        assert curve[-1] < 0.2 * curve[0]
    assert 0 < distance(bfloat16, curves[0]) < noise / 2
