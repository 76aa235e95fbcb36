"""The facts about the model that makes a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luna_monai.errors import LunaError
from luna_monai.files import sha256_of
from luna_monai.metrics.calibration import Calibration
from luna_monai.networks.runtimes import exported_metadata
from luna_monai.share import bundle_dir

_OPERATING_POINTS = {"sensitivity": "sensitivity {:g}", "false_positives_per_scan": "{:g} false positives per scan"}


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model.

    Attributes:
        name: of the file of weights, without its folder.
        sha256: of that file, hexadecimal.
        version: of the bundle.
        thresholds: probabilities of the network by what they were chosen for; empty where none are known.
        calibration: fitted for these weights; None where none is known.
        synthetic: whether they are the bundle's weights, which were trained and calibrated on synthetic scans.
    """

    name: str
    sha256: str
    version: str
    thresholds: dict[str, float]
    calibration: Calibration | None = None
    synthetic: bool = False


def default_weights(bundle_root: str | Path) -> str:
    """Find the weights that come with the bundle.

    Args:
        bundle_root: folder of the bundle; the installed bundle is used where it has no weights.

    Returns:
        Path of ``models/model.pt``.

    Raises:
        LunaError: when there are none.
    """
    places = [Path(bundle_root) / "models" / "model.pt", bundle_dir() / "models" / "model.pt"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise LunaError(f"{places[1]}: the bundle has no weights; name a file of weights (--weights)")
    return str(found)


def model_facts(weights: str | Path, metadata: Mapping[str, Any]) -> ModelFacts:
    """Describe a model by its file of weights.

    Args:
        weights: the file.
        metadata: of the bundle; its ``operating_points`` count only for the weights that they were measured with
            (``weights_sha256``) and for exports of them.

    Returns:
        Name, SHA-256, the bundle's version, thresholds and calibration.

    Raises:
        LunaError: when the file is missing.
    """
    weights = Path(weights)
    sha256 = sha256_of(weights)
    own = (sha256, exported_metadata(weights).get("weights_sha256", sha256))
    bundled = bundle_dir() / "models" / "model.pt"
    points = metadata.get("operating_points") or {}
    thresholds: dict[str, float] = {}
    calibration = None
    if points.get("weights_sha256") in own:
        calibration = Calibration(**points["calibration"])
        for kind, text in _OPERATING_POINTS.items():
            for point in points["thresholds"][kind]:
                thresholds[text.format(point["wanted"])] = float(point["threshold"])
    synthetic = bundled.is_file() and sha256_of(bundled) in own
    return ModelFacts(weights.name, sha256, str(metadata.get("version", "")), thresholds, calibration, synthetic)
