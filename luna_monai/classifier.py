"""Python API: find and classify nodules in a CT scan with one call."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from luna_monai.detection import BlobProposer, chest_warnings, find_findings, findings_table
from luna_monai.errors import LunaError
from luna_monai.networks import LunaModel, load_network
from luna_monai.predictions.inferer import CandidateInferer
from luna_monai.predictions.result import default_weights
from luna_monai.predictions.scan_dataset import ScanDataset
from luna_monai.scans import list_scans
from luna_monai.share import bundle_dir
from luna_monai.transforms import ClipIntensityRange

_SPATIAL_SIZE = (32, 48, 48)


class NoduleClassifier:
    """A trained network that finds and classifies nodule candidates in CT scans.

    Research software. Not for clinical use.

    Args:
        weights: ``"bundle"`` for the weights that come with the package; or the path of a run's ``model.pt`` or
            ``checkpoint.pt``, of a ``.state`` file of the book, or of an exported network.
        device: where the network runs. None uses the GPU if there is one, else the CPU.
        flips: average the logits over the eight flips of each likely candidate. This is more accurate, and a scan takes
            about twice as long.

    Raises:
        LunaError: when the weights cannot be read.
    """

    def __init__(
        self, weights: str | Path = "bundle", *, device: str | torch.device | None = None, flips: bool = False
    ) -> None:
        path = default_weights(bundle_dir()) if str(weights) == "bundle" else weights
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = load_network(path, LunaModel(), flips).to(device)
        self.inferer = CandidateInferer(_SPATIAL_SIZE, 128, device, ClipIntensityRange(-1000, 1000))

    def __call__(self, scan: str | Path, seriesuid: str | None = None) -> pd.DataFrame:
        """Find nodules in a scan, and log the warnings about it.

        Args:
            scan: a file (``.mhd``, ``.mha``, ``.nii``, ``.nii.gz``, ``.nrrd``) or a folder of DICOM files.
            seriesuid: the series to read, if there are several.

        Returns:
            One row per finding, most probable first: ``seriesuid``, ``coordX``, ``coordY``, ``coordZ`` (LPS, mm),
            ``probability``, ``diameter_mm`` and the other measurements of
            :class:`~luna_monai.detection.findings.Finding`. Measurements that are not available are NaN.

        Raises:
            LunaError: when the scan does not exist or is damaged, or when there are several and no ``seriesuid``.
        """
        sources = list_scans(scan, seriesuid)
        if len(sources) > 1:
            names = ", ".join(str(source.seriesuid or source.path.name) for source in sources[:3])
            raise LunaError(f"{scan}: {len(sources)} scans; choose one with seriesuid, for example {names}")
        item = ScanDataset(sources, proposer=BlobProposer(), examine=chest_warnings)[0]
        if "error" in item:
            raise LunaError(item["error"])
        for text in item["warnings"]:
            logging.getLogger(__name__).warning("%s: %s", item["header"].seriesuid, text)
        probability = self._probability(item["image"], item["centers"])
        findings = find_findings(
            item["image"][0].numpy(), item["geometry"], item["points"].numpy(), probability, item["lungs"]
        )
        return findings_table(findings, item["header"].seriesuid)

    def classify(self, crops: np.ndarray | torch.Tensor) -> np.ndarray:
        """Classify crops.

        Args:
            crops: (n, 32, 48, 48) in HU, axes z, y, x, each with a candidate at its center.

        Returns:
            (n,) float32, the probability of a nodule in each crop.

        Raises:
            LunaError: when the shape is different, or a voxel is not finite.
        """
        crops = crops.detach().cpu().float().numpy() if isinstance(crops, torch.Tensor) else crops
        batch = torch.as_tensor(np.array(crops, dtype=np.float32))  # a copy, which preprocessing changes
        if batch.ndim != 4 or batch.shape[1:] != _SPATIAL_SIZE:
            raise LunaError(f"crops must have the shape (n, 32, 48, 48), found {tuple(batch.shape)}")
        if not bool(torch.isfinite(batch).all()):
            raise LunaError("crops contain voxels that are not finite; set them to -1000 HU (air)")
        return self._probability(batch[:, None])

    def _probability(self, image: torch.Tensor, centers: torch.Tensor | None = None) -> np.ndarray:
        with torch.inference_mode():
            logits = self.inferer(image, self.network, centers=centers)
        return logits.softmax(dim=1)[:, 1].numpy()


#: Alias of :class:`NoduleClassifier`, for ``luna_monai.load("bundle")``.
load = NoduleClassifier
