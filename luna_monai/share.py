"""Where the bundle and the experiment configurations are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path


def _share_dir() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent
    return checkout if (checkout / "bundle" / "configs").is_dir() else package / "_share"


def bundle_dir() -> Path:
    """Return the folder of the MONAI bundle."""
    return _share_dir() / "bundle"


def configs_dir() -> Path:
    """Return the folder of the experiments, overlays on the bundle's ``train.yaml``."""
    return _share_dir() / "configs"
