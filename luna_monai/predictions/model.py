"""Which model makes a prediction, and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luna_monai.errors import LunaError
from luna_monai.files import sha256_of
from luna_monai.metrics.calibration import Calibration
from luna_monai.networks.runtimes import exported_metadata
from luna_monai.predictions.result import ModelFacts
from luna_monai.share import bundle_dir


def default_weights(bundle_root: str | Path) -> str:
    """Find the weights that come with the bundle.

    Args:
        bundle_root: folder of the bundle; where it has no weights, those of the installed bundle are taken, so that
            commands work from any folder.

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
        metadata: of the bundle; its ``operating_points``, which ``luna-monai evaluate --metadata`` stores, count only
            for the very weights that they were measured with (``weights_sha256``), or an export of them.

    Returns:
        Name, SHA-256, the bundle's version, thresholds and calibration.

    Raises:
        LunaError: when the file is missing, or the metadata are damaged.
    """
    weights = Path(weights)
    sha256 = sha256_of(weights)
    points = metadata.get("operating_points") or {}
    thresholds: dict[str, float] = {}
    calibration = None
    if points.get("weights_sha256") in (sha256, exported_metadata(weights).get("weights_sha256", sha256)):
        try:
            calibration = Calibration(**points["calibration"])
            for name, wanted in (
                ("sensitivity {:g}", points["thresholds"]["sensitivity"]),
                ("{:g} false positives per scan", points["thresholds"]["false_positives_per_scan"]),
            ):
                thresholds |= {name.format(point["wanted"]): float(point["threshold"]) for point in wanted}
        except (KeyError, TypeError, ValueError) as error:
            raise LunaError(
                f"metadata.json: damaged operating_points ({type(error).__name__}: {error}); store them again with "
                "'luna-monai evaluate --metadata'"
            ) from None
    return ModelFacts(weights.name, sha256, str(metadata.get("version", "")), thresholds, calibration)
