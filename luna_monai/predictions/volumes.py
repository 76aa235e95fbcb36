"""Volumes that lie over a scan in any viewer: outlines of findings, attribution maps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from luna_monai.files import write_bytes
from luna_monai.predictions.result import ScanPrediction
from luna_monai.scans.geometry import Geometry


def to_image(values: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Make an image of ITK of an array (z, y, x) and its geometry."""
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.ravel(geometry.direction).tolist())
    return image


def in_file_order(values: np.ndarray, grid: Geometry, geometry: Geometry) -> sitk.Image:
    """Turn what lies on the scan as the network sees it back to the scan as its file has it.

    Args:
        values: array (z, y, x).
        grid: of the array: the scan turned to LPS and padded.
        geometry: of the scan in the order of its file.

    Returns:
        An image with the size and the geometry of the file.
    """
    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(np.ravel(geometry.direction).tolist())
    image = sitk.DICOMOrient(to_image(values, grid), code)
    image = sitk.RegionOfInterest(image, geometry.size, image.TransformPhysicalPointToIndex(geometry.origin))
    return to_image(sitk.GetArrayViewFromImage(image), geometry)


def label_map(prediction: ScanPrediction) -> sitk.Image:
    """Draw the outlines of the findings that people are shown.

    Args:
        prediction: of a scan.

    Returns:
        Unsigned integers in the order of the file: 0, or the number of the finding, from 1; the more probable one
        where two overlap. A finding without an outline is left out.
    """
    grid = prediction.grid or prediction.geometry
    labels = np.zeros(grid.shape, dtype=np.uint8 if prediction.shown < 256 else np.uint16)
    for number in range(prediction.shown, 0, -1):
        finding = prediction.findings[number - 1]
        if finding.outline is not None and finding.outline_start is not None:
            box = tuple(slice(a, a + n) for a, n in zip(finding.outline_start, finding.outline.shape, strict=True))
            labels[box][finding.outline] = number
    return in_file_order(labels, grid, prediction.geometry)


def write_label_map(path: Path, prediction: ScanPrediction, **_: Any) -> None:
    """Write the outlines of a scan as NIfTI or NRRD; see :func:`label_map`."""
    write_volume(path, label_map(prediction))


def write_volume(path: Path, image: sitk.Image) -> None:
    """Write an image, compressed; the ending of ``path`` is the format's."""
    ending = next(end for end in (".nii.gz", ".nii", ".nrrd") if path.name.lower().endswith(end))
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"volume{ending}"
        sitk.WriteImage(image, str(whole), useCompression=ending != ".nii")
        write_bytes(path, whole.read_bytes())
