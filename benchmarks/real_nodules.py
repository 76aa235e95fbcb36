"""Sensitivity of weights on real nodules: 85 nodules of LUNA16 and the negatives of two LUNA16 scans.

    OMP_NUM_THREADS=1 python benchmarks/real_nodules.py NODULES LUNA16_MINI WEIGHTS [WEIGHTS ...]

NODULES is an ``.npz`` with ``hu`` int16 (n, 32, 48, 48), ``diameter_mm`` (n,) and ``seriesuid`` (n,); LUNA16_MINI is a
dataset folder. The threshold at N false positives per scan is set by the dataset's negatives: with two scans, 8
negatives exceed the threshold at 4.

``--metadata`` stores calibration and thresholds as ``operating_points`` in a bundle's metadata.json. The calibration
is fitted on the nodules of both files and the dataset's negatives, repeated so that the prevalence is that of the
dataset. The thresholds are for findings of proposed candidates, as in ``predict``: their false positives are those of
``--findings``, the file that ``luna-monai predict LUNA16_MINI --output CSV`` writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import open_cache, show
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from luna_monai.data import CandidateDataset, CandidateLoader
from luna_monai.data.tables import read_findings
from luna_monai.files import sha256_of, write_json
from luna_monai.metrics.calibration import Calibration, calibration_summary, log_odds_of_probability, operating_points
from luna_monai.metrics.froc import match_findings
from luna_monai.networks import LunaModel, with_weights
from luna_monai.networks.weights import FlipAverage

RATES = (4, 1)
SIZES = {"all": (0, 99), "10-20 mm": (10, 20), "20 mm and more": (20, 99)}


def read_dataset(folder: Path) -> tuple[torch.Tensor, pd.DataFrame]:
    """Return the candidates of a dataset folder, int16 (n, 1, 32, 48, 48), and their table."""
    table, cache = open_cache(folder, None)
    loader = CandidateLoader(CandidateDataset(table, cache), batch_size=64)
    return torch.cat([batch["image"] for batch in loader]), table


@torch.inference_mode()
def logit_margins(network: torch.nn.Module, images: torch.Tensor, flips: bool) -> np.ndarray:
    """Return the log odds of a nodule (n,); with ``flips`` the mean over the eight flips of likely candidates."""
    network, margins = FlipAverage(network) if flips else network, []
    for batch in images.split(64):
        logits = network(batch.float().to(memory_format=torch.channels_last_3d))
        margins.append(logits[:, 1] - logits[:, 0])
    return torch.cat(margins).double().numpy()


def sensitivities(found: np.ndarray, diameter: np.ndarray) -> list[str]:
    """Return the sensitivity for all nodules and by size."""
    parts = [found[(diameter >= low) & (diameter < high)] for low, high in SIZES.values()]
    return [f"{100 * part.mean():.0f} %" if len(part) else "-" for part in parts]


def cuts(negatives: np.ndarray, scans: int) -> list[float]:
    """Return the thresholds as log odds: 0 (a probability of 1/2), then those at each of ``RATES``."""
    ranked = np.sort(negatives)[::-1]
    return [0.0, *(float(ranked[rate * scans]) for rate in RATES)]


def held_out(network: torch.nn.Module, images: torch.Tensor, table: pd.DataFrame, flips: bool) -> list[str]:
    """Return sensitivities and ROC AUC on a dataset with its own negatives; the best hit of a nodule counts."""
    margin, negative = logit_margins(network, images, flips), (table["class"] == 0).to_numpy()
    hits = table[~negative].assign(margin=margin[~negative])
    best = hits.groupby(["seriesuid", "diameter_mm"])["margin"].max()
    thresholds = cuts(margin[negative], table["seriesuid"].nunique())[1:]
    return [f"{100 * (best > cut).mean():.0f} %" for cut in thresholds] + [f"{roc_auc_score(~negative, margin):.4f}"]


def store_operating_points(
    path: Path, weights: Path, nodules: pd.DataFrame, candidates: pd.DataFrame, false: np.ndarray
) -> None:
    """Store calibration and thresholds, given nodules and candidates with their probability, and false findings."""
    scans = candidates["seriesuid"].nunique()
    # The nodules of two scans are too few for a temperature. The negatives are repeated to keep the prevalence.
    positives = pd.concat([candidates.query("`class` == 1"), nodules])
    times = round(len(positives) / candidates["class"].sum())
    fitted = pd.concat([positives, *[candidates.query("`class` == 0")] * times])
    summary = calibration_summary(fitted["probability"], fitted["class"], fitted["seriesuid"])
    calibration = Calibration(**summary["calibration"])
    is_nodule = np.arange(len(nodules) + len(false)) < len(nodules)
    points = operating_points(np.r_[nodules["probability"], false], is_nodule, scans)
    points = points[(points["kind"] == "sensitivity") | (points["wanted"] * scans >= 1)]
    points = points.drop(columns="precision")  # most nodules are from other scans than the negatives
    points["calibrated_threshold"] = calibration.apply(log_odds_of_probability(points["threshold"]))
    metadata = json.loads(path.read_text())
    metadata["operating_points"] = {
        "weights": weights.name,
        "weights_sha256": sha256_of(weights),
        "fitted_on": {
            "thresholds": {"nodules": len(nodules), "false_positives": len(false), "scans_of_false_positives": scans},
            "calibration": {
                "scans": summary["fitted_on"]["scans"],
                "nodule_candidates": len(positives),
                "negatives": int((candidates["class"] == 0).sum()),
                "weight_of_negatives": times,
            },
        },
        "calibration": summary["calibration"],
        "thresholds": {kind: rows.drop(columns="kind").to_dict("records") for kind, rows in points.groupby("kind")},
        "expected_calibration_error": {
            name: summary["reliability"][name]["expected_calibration_error"] for name in ("raw", "calibrated")
        },
    }
    write_json(path, metadata)


def false_findings(findings: Path, dataset: Path) -> np.ndarray:
    """Return the probabilities of the false positives among the findings of a prediction."""
    submission = pd.read_csv(findings)
    matches = match_findings(submission, *read_findings(dataset), list(submission["seriesuid"].unique()))
    return matches.candidates.query("outcome == 'false_positive'")["probability"].to_numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodules", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("weights", nargs="+", type=Path)
    parser.add_argument("--flips", action="store_true", help="average over the eight flips of a candidate")
    parser.add_argument("--held-out", type=Path, help="another dataset folder, evaluated with its own negatives")
    parser.add_argument("--metadata", type=Path, help="metadata.json to store operating points in")
    parser.add_argument("--findings", type=Path, help="with --metadata: findings of the weights in the dataset")
    arguments = parser.parse_args()
    if (arguments.metadata is None) != (arguments.findings is None):
        parser.error("--metadata and --findings need each other")
    if arguments.metadata and (arguments.flips or len(arguments.weights) > 1):
        parser.error("--metadata needs one file of weights, without --flips")

    nodules = np.load(arguments.nodules)
    diameter, real = nodules["diameter_mm"], torch.from_numpy(nodules["hu"])[:, None]
    own, own_table = read_dataset(arguments.dataset)
    negative = (own_table["class"] == 0).to_numpy()
    synthetic = read_dataset(arguments.held_out) if arguments.held_out else None
    header = ["weights", *(f"{cut}: {size}" for cut in ("P > 0.5", "4 FP", "1 FP") for size in SIZES)]
    header += ["AUC", "own at 4", "own at 1"] + (["held out at 4", "at 1", "AUC"] if synthetic else [])
    rows = []
    for path in arguments.weights:
        network = with_weights(LunaModel().eval(), path).to(memory_format=torch.channels_last_3d)
        margin, mine = (logit_margins(network, images, arguments.flips) for images in (real, own))
        thresholds = cuts(mine[negative], own_table["seriesuid"].nunique())
        row = [str(path), *(share for cut in thresholds for share in sensitivities(margin > cut, diameter))]
        row.append(f"{roc_auc_score(~negative, mine):.4f}")
        best = own_table[~negative].assign(margin=mine[~negative]).query("diameter_mm > 0")
        best = best.groupby(["seriesuid", "diameter_mm"])["margin"].max()
        row += [f"{(best > cut).sum()} of {len(best)}" for cut in thresholds[1:]]
        rows.append(row + (held_out(network, *synthetic, arguments.flips) if synthetic else []))
        if arguments.metadata:
            false = false_findings(arguments.findings, arguments.dataset)
            found = pd.DataFrame({"seriesuid": nodules["seriesuid"], "class": 1, "probability": expit(margin)})
            candidates = own_table.assign(probability=expit(mine))
            store_operating_points(arguments.metadata, path, found, candidates, false)
    show(header, rows)


if __name__ == "__main__":
    main()
