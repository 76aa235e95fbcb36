"""A small dataset with two CTs, and the folder of a run on it."""

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import yaml

from luna_monai.apps.report import LunaReportApp
from luna_monai.metrics.per_class import per_class_metrics

COLUMNS = ["row", "seriesuid", "coordX", "coordY", "coordZ", "class", "diameter_mm", "probability", "loss"]
NODULES = {"1.1": [(10.0, -5.0, 20.0, 12.0), (-20.0, 0.0, 35.0, 5.0)], "1.2": [(0.0, 0.0, 30.0, 8.0)]}


def write_scan(path, balls, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    """A CT of lung with balls of tissue: 90 mm wide, 60 mm high, the middle of the patient at x = y = 0."""
    direction = np.reshape(direction, (3, 3)).astype(float)
    size, spacing = np.array([60, 60, 40]), np.array([1.5, 1.5, 1.5])
    middle = np.array([0.0, 0.0, 30.0])
    origin = middle - direction @ ((size - 1) / 2 * spacing)
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    world = np.stack([i, j, k], axis=-1) * spacing @ direction.T + origin
    voxels = np.full(k.shape, -850, dtype=np.int16)
    for *center, diameter in balls:
        voxels[((world - center) ** 2).sum(axis=-1) < (diameter / 2) ** 2] = 30
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    image.SetDirection(direction.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def predictions(seed, uids, rows=150):
    """Candidates on every nodule and many others, some of each class with a wrong prediction."""
    generator = np.random.default_rng(seed)
    nodules = [(uid, *nodule) for uid in uids for nodule in NODULES[uid]]
    table = pd.DataFrame(nodules * 5, columns=["seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"])
    table[["coordX", "coordY", "coordZ"]] += generator.normal(0, 0.3, size=(len(table), 3))
    others = pd.DataFrame(generator.uniform(-40, 40, size=(rows, 3)), columns=["coordX", "coordY", "coordZ"])
    others["coordZ"] = generator.uniform(5, 55, size=rows)
    others["seriesuid"] = generator.choice(uids, size=rows)
    table = pd.concat([table.assign(**{"class": 1}), others.assign(**{"class": 0, "diameter_mm": 0.0})])
    table["probability"] = np.where(
        table["class"] == 1, generator.beta(2, 2, size=len(table)), generator.beta(1, 2, size=len(table))
    )
    table["loss"] = -np.log(np.where(table["class"] == 1, table["probability"], 1 - table["probability"]))
    table["row"] = np.arange(len(table))
    return table[COLUMNS]


@pytest.fixture
def scan_with_balls(tmp_path):
    """A function that writes a CT with balls of tissue in it, in some orientation, and returns its path."""

    def write(balls, direction):
        write_scan(tmp_path / "scan.mhd", balls, direction)
        return tmp_path / "scan.mhd"

    return write


def write_dataset(folder):
    write_scan(folder / "subset0" / "1.1.mhd", NODULES["1.1"])
    write_scan(folder / "subset3" / "1.2.mhd", NODULES["1.2"], direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    rows = [f"{uid},{','.join(map(str, nodule))}\n" for uid, nodules in NODULES.items() for nodule in nodules]
    (folder / "annotations.csv").write_text(header + "".join(rows))
    table = pd.concat([predictions(0, ["1.2"]), predictions(1, ["1.1"])])
    table[["seriesuid", "coordX", "coordY", "coordZ", "class"]].to_csv(folder / "candidates.csv", index=False)
    (folder / "annotations_excluded.csv").write_text(header + "1.1,-30,10,40,-1\n")
    return folder


def write_run(folder, dataset):
    (folder / "predictions").mkdir(parents=True)
    parts = {"trn": predictions(0, ["1.2"]), "val": predictions(1, ["1.1"])}
    rows = []
    for epoch in (1, 2, 3):
        for split, table in parts.items():
            kept = table if epoch == 2 else table.assign(loss=table["loss"] + epoch)
            metrics = per_class_metrics(kept["class"], kept["probability"], kept["loss"])
            rows.append({"epoch": epoch, "split": split, "samples": 165 * epoch, **metrics})
    pd.DataFrame(rows).to_csv(folder / "metrics.csv", index=False)
    for split, table in parts.items():
        table.to_csv(folder / "predictions" / f"{split}.csv", index=False)
    (folder / "config.yaml").write_text(yaml.safe_dump({"dataset_dir": str(dataset), "fold": 0, "max_epochs": 3}))
    return folder


@pytest.fixture
def dataset(tmp_path):
    """A LUNA16 folder with one scan in subset0, and one with flipped axes in subset3."""
    return write_dataset(tmp_path / "luna")


@pytest.fixture
def run_folder(tmp_path, dataset):
    """The folder of a run of three epochs on that dataset, validated on subset0."""
    return write_run(tmp_path / "a run <1>", dataset)


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory):
    """The same folder with its report, for tests that only look at it."""
    folder = tmp_path_factory.mktemp("reported")
    run = write_run(folder / "a run <1>", write_dataset(folder / "luna"))
    assert LunaReportApp([run]).main() == 0
    return run
