"""Share of attribution maps that lies on the nodule, by method.

python benchmarks/heat.py DATASET_DIR WEIGHTS [WEIGHTS ...]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import SIZE, show
from monai.visualize import GradCAM

from luna_monai.data import read_candidates
from luna_monai.networks import LunaModel, with_weights
from luna_monai.predictions import CandidateExplainer
from luna_monai.scans import find_scans, read_scan
from luna_monai.transforms import CropCandidates
from luna_monai.transforms.crop import window_start

#: Voxels within this distance of the candidate count as on the nodule.
NEAR_MM = 10.0


def read_nodules(dataset_dir: Path) -> list[tuple[torch.Tensor, np.ndarray]]:
    """Crop the candidates on nodules; return each with the distance of its voxels from the candidate, in mm."""
    paths = find_scans(dataset_dir)
    found = []
    table = read_candidates(dataset_dir)
    for uid, rows in table[table["class"] == 1].groupby("seriesuid"):
        scan = read_scan(paths[uid])
        volume, geometry = torch.from_numpy(np.array(scan.voxels))[None], scan.geometry
        for center in geometry.world_to_index(rows[["coordX", "coordY", "coordZ"]].to_numpy()):
            image = CropCandidates(SIZE)(volume, center[None]).clamp(-1000, 1000)
            start = [window_start(*axis) for axis in zip(center.tolist(), SIZE, geometry.shape, strict=True)]
            offsets = np.moveaxis(np.indices(SIZE), 0, -1) + np.array(start) - center
            found.append((image, np.linalg.norm(offsets * geometry.spacing[::-1], axis=-1)))
    return found


def plain_grad_cam(network: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return MONAI's ``GradCAM`` of the last feature maps, without its postprocessing, which inverts the map."""
    # ReLU both before and after the pooling does not change the output; Grad-CAM needs the values in between.
    network = copy.deepcopy(network)
    network.block4.norm2 = torch.nn.ReLU()
    cam = GradCAM(network, "block4.norm2", postprocessing=torch.nn.Identity())
    return lambda image: cam(image.float(), class_idx=1)[:, 0].detach()


def main() -> None:
    """Compute the maps of all candidates on nodules for each file of weights, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path, help="LUNA16 dataset folder")
    parser.add_argument("weights", nargs="+", type=Path)
    arguments = parser.parse_args()
    nodules = read_nodules(arguments.dataset_dir)
    volume = np.mean([(distance <= NEAR_MM).mean() for _, distance in nodules])
    print(f"{len(nodules)} candidates on nodules; {volume:.1%} of the volume is within {NEAR_MM:.0f} mm")
    rows = []
    for path in arguments.weights:
        network = with_weights(LunaModel().eval(), path)
        methods = {
            "MONAI's GradCAM": plain_grad_cam(network),
            "HiResCAM (--explain)": CandidateExplainer(network),
        }
        for name, explain in methods.items():
            shares, peaks = [], []
            for image, distance in nodules:
                heat = explain(image)[0].numpy()
                shares.append(heat[distance <= NEAR_MM].sum() / max(heat.sum(), np.finfo(float).tiny))
                peaks.append(distance.flat[heat.argmax()])
            figures = (f"{np.mean(shares):.0%}", f"{np.median(shares):.0%}", f"{np.median(peaks):.1f}")
            rows.append((path.name, name, *figures))
    show(["weights", "method", "share on the nodule, mean", "median", "distance of the peak, mm, median"], rows)


if __name__ == "__main__":
    main()
