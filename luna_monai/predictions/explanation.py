"""Heat maps of a scan's candidates, in the space of the scan."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch

from luna_monai.data.tables import COORDINATES
from luna_monai.errors import LunaError
from luna_monai.files import write_bytes
from luna_monai.predictions.result import ScanPrediction
from luna_monai.scans.geometry import Geometry
from luna_monai.transforms.crop import CropCandidates, window_start

#: Endings of the file that a heat map is written to.
SUFFIXES = (".nii.gz", ".nii")


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What in a scan speaks for nodules.

    Attributes:
        values: array (z, y, x) of the scan's shape, uint8 from 0, nothing, to 255, the strongest of a candidate; where
            candidates overlap, the higher value.
        geometry: of the array, that of the scan.
        candidates: how many candidates it shows, the most probable ones.
    """

    values: np.ndarray
    geometry: Geometry
    candidates: int


def explain_scan(
    prediction: ScanPrediction,
    voxels: torch.Tensor,
    geometry: Geometry,
    explainer: Callable[[torch.Tensor], torch.Tensor],
    *,
    max_candidates: int = 5,
    spatial_size: Sequence[int] = (32, 48, 48),
    preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> HeatMap:
    """Explain the most probable candidates of a scan.

    Args:
        prediction: what the model says about it.
        voxels: the scan as the network sees it, (1, z, y, x) in HU: with its axes turned and air put around it where
            it was too small.
        geometry: of ``voxels``.
        explainer: gives heat maps (n, z, y, x) from 0 to 1 for candidates (n, 1, z, y, x), such as
            :class:`~luna_monai.predictions.CandidateExplainer`.
        max_candidates: how many are explained.
        spatial_size: voxels of a candidate, z, y, x.
        preprocessing: what is done to candidates before the network sees them.

    Returns:
        The heat maps of all of them on the scan's own grid.
    """
    shown = prediction.candidates.head(max_candidates)
    # The peak of a proposal at the face of a scan may lie half a voxel outside.
    centers = geometry.world_to_index(shown[COORDINATES].to_numpy(dtype=float))
    centers = np.clip(centers, 0, np.asarray(geometry.shape) - 1)
    image = CropCandidates(spatial_size)(voxels, centers)
    heat = explainer(image if preprocessing is None else preprocessing(image)).numpy()
    values = np.zeros(prediction.geometry.shape, dtype=np.uint8)
    # Both grids have the same voxels in another order of their axes, so that indices go to indices.
    to_scan = np.linalg.inv(prediction.geometry.affine_ras_zyx) @ geometry.affine_ras_zyx
    offsets = np.indices(tuple(spatial_size)).reshape(3, -1).T
    for block, center in zip(heat, centers.tolist(), strict=True):
        starts = [window_start(*axis) for axis in zip(center, spatial_size, geometry.shape, strict=True)]
        indices = np.rint((offsets + starts) @ to_scan[:3, :3].T + to_scan[:3, 3]).astype(np.int64)
        inside = ((indices >= 0) & (indices < values.shape)).all(axis=1)  # the air that was put around a small scan
        place = tuple(indices[inside].T)
        values[place] = np.maximum(values[place], np.rint(block.ravel()[inside] * 255).astype(np.uint8))
    return HeatMap(values, prediction.geometry, len(shown))


def write_heat_map(heat_map: HeatMap, path: str | Path) -> None:
    """Write a heat map as NIfTI, which viewers lay over the scan.

    Args:
        heat_map: what to write: uint8, from 0 to 255, with the scan's affine (RAS, mm).
        path: the file, ``.nii.gz`` or ``.nii``; it is there whole or not at all.

    Raises:
        LunaError: when it can't be written.
    """
    # NIfTI's axes are x, y, z.
    affine = heat_map.geometry.affine_ras_zyx[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(heat_map.values.T, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"luna-monai: what speaks for a nodule"
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    content = image.to_bytes()
    write_bytes(path, gzip.compress(content, 6, mtime=0) if str(path).lower().endswith(".gz") else content)


class ScanExplanation:
    """Explains the most probable candidates of one scan and writes the heat map.

    Args:
        path: the NIfTI file.
        explainer: as in :func:`explain_scan`.
        max_candidates: how many are explained.
        spatial_size: voxels of a candidate, z, y, x.
        preprocessing: what is done to candidates before the network sees them.

    Raises:
        LunaError: when ``max_candidates`` is not positive.
    """

    def __init__(
        self,
        path: str | Path,
        explainer: Callable[[torch.Tensor], torch.Tensor],
        max_candidates: int = 5,
        spatial_size: Sequence[int] = (32, 48, 48),
        preprocessing: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if max_candidates < 1:
            raise LunaError(f"the number of candidates to explain must be at least 1, found {max_candidates}")
        self.path = Path(path)
        self.explainer = explainer
        self.max_candidates = max_candidates
        self.spatial_size = spatial_size
        self.preprocessing = preprocessing
        self.heat_map: HeatMap | None = None

    def check(self, scans: int) -> None:
        """Check the name of the file and the number of scans before the work begins.

        Args:
            scans: how many there are.

        Raises:
            LunaError: when the file's ending is not that of NIfTI, a folder is in the way, or there are several scans.
        """
        name = self.path.name.lower()
        if not name.endswith(SUFFIXES) or name in SUFFIXES:
            raise LunaError(f"{self.path}: the name of a heat map ends with {' or '.join(SUFFIXES)}")
        if self.path.is_dir():
            raise LunaError(f"{self.path}: a folder; the heat map is a file")
        if scans != 1:
            raise LunaError(f"{self.path}: a heat map is of one scan, and there are {scans}; explain them one by one")

    def explain(self, prediction: ScanPrediction, voxels: torch.Tensor, geometry: Geometry) -> HeatMap:
        """Explain the scan; see :func:`explain_scan`.

        Args:
            prediction: what the model says about it.
            voxels: the scan as the network sees it, (1, z, y, x) in HU.
            geometry: of ``voxels``.

        Returns:
            The heat map, which :meth:`write` writes.
        """
        self.heat_map = explain_scan(
            prediction,
            voxels,
            geometry,
            self.explainer,
            max_candidates=self.max_candidates,
            spatial_size=self.spatial_size,
            preprocessing=self.preprocessing,
        )
        return self.heat_map

    def write(self) -> list[Path]:
        """Write what :meth:`explain` found.

        Returns:
            The file.

        Raises:
            LunaError: when it can't be written.
        """
        if self.heat_map is None:
            return []
        write_heat_map(self.heat_map, self.path)
        return [self.path]
