"""Sizes and ranks of findings: on real scans, on crops of real nodules, and on synthetic nodules of known volume.

python benchmarks/findings.py DATA_DIR [--scans N]

DATA_DIR holds luna16_mini/, luna16_tables/luna16_mhd_headers.zip and real_nodules.npz; missing parts are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from common import SIZE, show

from luna_monai.detection import BlobProposer, find_findings
from luna_monai.detection.lungs import Lungs, find_lungs
from luna_monai.detection.outlines import find_outline
from luna_monai.networks import LunaModel, load_network
from luna_monai.predictions import default_weights
from luna_monai.scans import Geometry, find_scans, read_scan
from luna_monai.synthetic.candidates import collect_places
from luna_monai.synthetic.nodules import Nodule, draw_nodule, paint_nodule
from luna_monai.synthetic.painting import Canvas
from luna_monai.synthetic.setting import draw_setting
from luna_monai.synthetic.tissue import compose, scan_volume
from luna_monai.synthetic.vessels import draw_tubes
from luna_monai.transforms import CropCandidates

COORDINATES = ["coordX", "coordY", "coordZ"]
SIZES = (4, 6, 9, 14, 22)
#: Groups of fewer nodules get no result.
FEWEST = 5
#: A solid part cannot be defined reliably in smaller nodules (MacMahon et al., "Guidelines for management of incidental
#: pulmonary nodules detected on CT images: from the Fleischner Society 2017", Radiology 284, 2017).
PART_SOLID_MM = 6
#: Attenuation of each kind, and the pool of places it is painted at.
KINDS = {
    "solid": ("solid", "lung"),
    "cavity": ("solid", "lung"),
    "on a vessel": ("solid", "small vessel"),
    "on the pleura": ("solid", "wall"),
    "part-solid": ("part-solid", "lung"),
    "ground-glass": ("ground-glass", "lung"),
}


class Measured(NamedTuple):
    """One nodule: its kind, true and measured diameter, and processor time."""

    kind: str
    wanted_mm: float
    found_mm: float
    seconds: float
    held_out: bool


def measure(volume: np.ndarray, geometry: Geometry, lungs: Lungs, point: np.ndarray) -> tuple[float, float]:
    """Outline the nodule at a point; return its diameter (NaN without an outline) and the processor time in seconds."""
    start = time.process_time()
    outline = find_outline(volume, geometry, geometry.world_to_continuous_index(point[None])[0], lungs)
    seconds = time.process_time() - start
    if len(outline) == 0:
        return float("nan"), seconds
    return float(np.cbrt(6 / np.pi * len(outline) * np.prod(geometry.spacing))), seconds


def real_nodules(folder: Path) -> list[Measured]:
    """Measure the crops of real nodules; every second scan is held out from tuning."""
    crops = np.load(folder / "real_nodules.npz")
    held_out = set(sorted(set(crops["seriesuid"].tolist()))[1::2])
    results = []
    with zipfile.ZipFile(folder / "luna16_tables" / "luna16_mhd_headers.zip") as headers:
        names = {Path(name).stem: name for name in headers.namelist()}
        columns = (crops[key] for key in ("hu", "diameter_mm", "seriesuid", "center_xyz"))
        for hu, diameter, uid, point in zip(*columns, strict=True):
            text = headers.read(names[str(uid)]).decode()
            size, spacing, offset, matrix = (
                re.search(rf"^{key} = (.*)$", text, re.MULTILINE)[1].split()
                for key in ("DimSize", "ElementSpacing", "Offset", "TransformMatrix")
            )
            scan = Geometry.from_header(
                [int(n) for n in size], *(np.array(v, dtype=float) for v in (spacing, offset, matrix)), source=uid
            )
            center = scan.world_to_index(point[None])[0]
            start = np.clip(
                [round(c - n / 2) for c, n in zip(center, SIZE, strict=True)], 0, np.subtract(scan.shape, SIZE)
            )
            crop = dataclasses.replace(
                scan, size=SIZE[::-1], origin=tuple(map(float, scan.index_to_world(start[None])[0]))
            )
            lungs = find_lungs(hu, crop)
            results.append(Measured("real", float(diameter), *measure(hu, crop, lungs, point), str(uid) in held_out))
    return results


def draw_typical(random: np.random.Generator, kind: str, size: float) -> Nodule:
    """Draw a nodule with the properties that the generator gives to nodules of a kind and of about a size in mm."""
    attenuation = KINDS[kind][0]
    while True:
        nodule = draw_nodule(random)
        if nodule.kind == attenuation and abs(np.log(2 * nodule.radius / size)) < 0.4:
            break
    return dataclasses.replace(
        nodule,
        radius=size / 2 * random.uniform(0.85, 1.15),
        halo=0.0,  # the known volume does not include it
        calcium_hu=None,
        cavity=float(random.uniform(0.25, 0.5)) if kind == "cavity" else 0.0,
    )


def synthetic_nodules(seed: int) -> list[Measured]:
    """Measure nodules of all kinds and sizes in a part of a synthetic lung."""
    random = np.random.default_rng(seed)
    setting = draw_setting(random, 288, 150)
    tubes = draw_tubes(random, setting)
    volume = compose(random, setting, tubes)
    canvas = Canvas(volume, setting.fine, setting.acquisition.sigma)
    places = collect_places(random, setting, tubes)
    thorax, shape, steps = setting.thorax, np.array(setting.slices.shape), np.abs(setting.slices.step)[::-1]
    jobs = [(kind, size) for kind in KINDS for size in SIZES if kind != "part-solid" or size >= PART_SOLID_MM]
    chosen = [jobs[row] for row in random.choice(len(jobs), 16, replace=False)]
    painted: list[tuple[np.ndarray, float, str]] = []
    for kind, size in sorted(chosen, key=lambda job: -job[1]):
        nodule = draw_typical(random, kind, size)
        radius = nodule.radius
        for center in random.permutation(places[KINDS[kind][1]])[:60]:
            if kind == "on the pleura":
                center = center - thorax.normal(center[None])[0] * radius * random.uniform(0.45, 1.0)
            elif kind == "on a vessel":
                way = random.normal(size=3)
                center = center + way / np.linalg.norm(way) * radius * random.uniform(0.3, 1.0)
            index, margin = setting.slices.to_index(center[None])[0], (1.3 * radius + 3) / steps
            depth = float(thorax.grid.value_at(thorax.lung, center[None])[0])
            if (
                np.all((index > margin) & (index < shape - 1 - margin))
                and depth < (0.3 * radius if kind == "on the pleura" else -radius - 1)
                and all(np.linalg.norm(center - other) > radius + size_mm / 2 + 10 for other, size_mm, _ in painted)
            ):
                seen, _ = paint_nodule(random, canvas, center, nodule)
                painted.append((seen[:3], float(seen[3]), kind))
                break
    hu, acquisition = scan_volume(random, setting, volume), setting.acquisition
    first = setting.to_world(np.array([setting.slices.start]))[0]
    geometry = Geometry.from_header(
        hu.shape[::-1], acquisition.spacing, first, np.diag(acquisition.direction), source="synthetic"
    )
    lungs = find_lungs(hu, geometry)
    # Candidates hit a nodule, but rarely its center.
    return [
        Measured(
            kind,
            diameter,
            *measure(
                hu, geometry, lungs, setting.to_world(center[None])[0] + random.uniform(-0.12, 0.12, 3) * diameter
            ),
            True,  # no parameter was chosen on these
        )
        for center, diameter, kind in painted
    ]


def row(name: str, results: list[Measured]) -> list[str]:
    """Summarize: number, share without a size, median error, bias, 90th percentile of the error, time in ms."""
    error = np.array([result.found_mm / result.wanted_mm - 1 for result in results])
    missing = float(np.mean(np.isnan(error))) if len(error) else float("nan")
    if not np.isfinite(error).any():
        return [name, str(len(results)), "-", "-", "-", "-", "-"]
    ms = 1000 * float(np.mean([result.seconds for result in results]))
    values = (np.nanmedian(abs(error)), np.nanmedian(error), np.nanpercentile(abs(error), 90))
    shares = [f"{missing:.0%}", f"{values[0]:.1%}", f"{values[1]:+.1%}", f"{values[2]:.1%}"]
    return [name, str(len(results)), *shares, f"{ms:.0f}"]


HEADER = ["", "nodules", "without a size", "median error", "bias", "90th percentile", "ms"]


def show_sizes(results: list[Measured]) -> None:
    """Print the tables by kind, by size and by both."""
    rows = [row(kind, [one for one in results if one.kind == kind]) for kind in KINDS]
    sizes = [min(SIZES, key=lambda size: abs(np.log(size / one.wanted_mm))) for one in results]
    sized = list(zip(results, sizes, strict=True))
    rows += [row(f"{size} mm", [one for one, own in sized if own == size]) for size in SIZES]
    show(HEADER, [*rows, row("all", results)])
    print()
    cells = []
    for kind in KINDS:
        groups = [[one for one, own in sized if own == size and one.kind == kind] for size in SIZES]
        cells.append([kind, *(row("", group if len(group) >= FEWEST else [])[3] for group in groups)])
    show(["median error", *(f"{size} mm" for size in SIZES)], cells)


def show_ranks(folder: Path) -> None:
    """Print the ranks of annotated nodules among the findings of whole scans."""
    layout = torch.channels_last_3d
    network = load_network(default_weights("bundle"), LunaModel()).to(memory_format=layout)
    annotations, rows = pd.read_csv(folder / "annotations.csv"), []
    for uid, path in find_scans(folder).items():
        scan = read_scan(path)
        volume, geometry = scan.voxels, scan.geometry
        lungs = find_lungs(volume, geometry)
        points = BlobProposer()(volume, geometry, lungs)[COORDINATES].to_numpy()
        crops = CropCandidates(SIZE)(torch.from_numpy(volume)[None], geometry.world_to_index(points))
        with torch.inference_mode():
            batches = crops.clamp(-1000, 1000).float().to(memory_format=layout).split(64)
            probability = torch.cat([network(batch).softmax(1)[:, 1] for batch in batches]).numpy()
        findings = find_findings(volume, geometry, points, probability, lungs)
        for nodule in annotations[annotations["seriesuid"] == uid].itertuples():
            center = np.array([nodule.coordX, nodule.coordY, nodule.coordZ])
            away = [float(np.linalg.norm(center - finding.position)) for finding in findings]
            rank = next((k for k, mm in enumerate(away) if mm <= nodule.diameter_mm / 2), None)
            found = None if rank is None else findings[rank]
            size = None if found is None else found.diameter_mm
            rows.append(
                [
                    uid[-6:],
                    f"{nodule.diameter_mm:.1f}",
                    "-" if size is None else f"{size:.1f} ({size / nodule.diameter_mm - 1:+.0%})",
                    "-" if rank is None else f"{rank + 1} of {len(findings)}",
                    "-" if found is None else f"{found.probability:.3f}",
                    "-" if found is None else f"{len(found.candidates)} of {len(points)}",
                ]
            )
    show(["scan", "annotated, mm", "found, mm", "rank", "probability", "candidates"], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--scans", type=int, default=8, help="synthetic scans, 16 nodules each; default 8")
    arguments = parser.parse_args()
    if (arguments.data_dir / "luna16_mini").is_dir():
        print("## Whole scans\n")
        show_ranks(arguments.data_dir / "luna16_mini")
    if (arguments.data_dir / "real_nodules.npz").is_file():
        print("\n## Crops of real nodules\n")
        real = real_nodules(arguments.data_dir)
        halves = {"tuned on": False, "held out": True}
        parts = [row(name, [one for one in real if one.held_out == half]) for name, half in halves.items()]
        show(HEADER, [*parts, row("all", real)])
    if arguments.scans:
        print("\n## Synthetic nodules\n")
        show_sizes([one for seed in range(arguments.scans) for one in synthetic_nodules(300 + seed)])


if __name__ == "__main__":
    main()
