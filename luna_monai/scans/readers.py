"""Reading CTs: MetaImage as in LUNA16, NIfTI, NRRD and DICOM folders, with arrays in z, y, x order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from monai.data import ImageReader
from monai.utils import ensure_tuple
from nibabel.imageglobals import LoggingOutputSuppressor

from luna_monai.errors import LunaError
from luna_monai.scans.dicom import find_dicom_series, itk_errors, read_dicom_voxels
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.integrity import check_nifti, check_nifti_header, check_nrrd
from luna_monai.scans.metaimage import check_voxel_file, read_metaimage_header, read_metaimage_voxels

__all__ = ["Geometry", "SimpleITKReader", "check_scan", "files_of_scan", "map_or_read", "read_geometry"]

SUFFIXES = (".mhd", ".mha", ".nii", ".nii.gz", ".nrrd")


def read_geometry(path: str | Path, *, seriesuid: str | None = None) -> Geometry:
    """Read size, place and orientation of a scan from its header; no voxel is read.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder of DICOM slices.
        seriesuid: which series of a DICOM folder; needed when it holds several.

    Returns:
        The geometry.

    Raises:
        LunaError: when the scan is missing or its header cannot be read.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix == "dicom":
        return find_dicom_series(path, seriesuid).geometry
    if suffix in (".mhd", ".mha"):
        return read_metaimage_header(path).geometry
    if suffix in (".nii", ".nii.gz"):
        check_nifti_header(path)
    return _file_geometry(path)


def files_of_scan(path: str | Path, *, seriesuid: str | None = None) -> list[Path]:
    """List the files that a scan consists of.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder of DICOM slices.
        seriesuid: which series of a DICOM folder; needed when it holds several.

    Returns:
        The header and its voxel file for ``.mhd``, the slices in the order of the volume for DICOM, else the file
        alone. The voxel file is listed even when it does not exist.

    Raises:
        LunaError: when the scan is missing or its header cannot be read.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix == "dicom":
        return list(find_dicom_series(path, seriesuid).files)
    if suffix == ".mhd":
        return [path, read_metaimage_header(path).voxel_file]
    return [path]


def check_scan(path: str | Path) -> Geometry:
    """Check as much of a scan as can be checked without reading voxels.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder with one series of DICOM slices.

    Returns:
        The geometry.

    Raises:
        LunaError: when the header cannot be read, or a MetaImage's voxel file is missing or not as long as the header
            says.
    """
    path = Path(path)
    if _suffix(path) in (".mhd", ".mha"):
        header = read_metaimage_header(path)
        check_voxel_file(header)
        return header.geometry
    return read_geometry(path)


def map_or_read(path: str | Path, *, seriesuid: str | None = None) -> tuple[np.ndarray, Geometry]:
    """Get the voxels of a scan: mapped when they are an uncompressed MetaImage, read otherwise.

    A mapped array costs no memory until it is used, and only the parts used are read from disk.

    Args:
        path: a file with one of ``SUFFIXES``, or a folder of DICOM slices.
        seriesuid: which series of a DICOM folder; needed when it holds several.

    Returns:
        Array (z, y, x) in the type of the file (HU for a CT), and the geometry. Writing to a mapped array changes the
        copy in memory alone.

    Raises:
        LunaError: when the scan is missing, damaged, truncated, or not a scan of one number per voxel.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix in (".mhd", ".mha"):
        header = read_metaimage_header(path)
        return read_metaimage_voxels(header), header.geometry
    if suffix == "dicom":
        series = find_dicom_series(path, seriesuid)
        return read_dicom_voxels(series), series.geometry
    if suffix in (".nii", ".nii.gz"):
        check_nifti(path)
    else:
        check_nrrd(path)
    geometry = _file_geometry(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with itk_errors(path):
        voxels = sitk.GetArrayFromImage(reader.Execute())
    if suffix in (".nii", ".nii.gz") and np.issubdtype(voxels.dtype, np.floating):
        # ITK turns what is no finite number into 0, which in HU is water.
        with LoggingOutputSuppressor():
            voxels = np.asarray(nibabel.load(path).dataobj).T.astype(voxels.dtype, copy=False)
    if voxels.shape != geometry.shape:
        raise LunaError(f"{path}: the header says {geometry.shape} voxels (z, y, x), found {voxels.shape}")
    return voxels, geometry


class SimpleITKReader(ImageReader):
    """MONAI reader for the files of :func:`map_or_read`, to be used as ``LoadImaged(reader=SimpleITKReader)``.

    Arrays keep the z, y, x order they have on disk (turning them costs six times as much as reading them); the affine
    maps z, y, x indices to RAS, so that MONAI's spatial transforms are right. ``LoadImage`` turns everything into
    float32 unless it is given ``dtype=None``.

    Args:
        seriesuid: which series of a DICOM folder; needed when it holds several.
    """

    def __init__(self, seriesuid: str | None = None) -> None:
        super().__init__()
        self.seriesuid = seriesuid

    def verify_suffix(self, filename: Sequence[str | Path] | str | Path) -> bool:
        """Tell whether the name of a file, or of each file of a sequence, is one this reader knows.

        Args:
            filename: one or several names.

        Returns:
            True for the files of ``SUFFIXES`` and for folders.
        """
        return all(Path(name).is_dir() or str(name).lower().endswith(SUFFIXES) for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | Path] | str | Path, **kwargs: Any) -> tuple[str | Path, ...]:
        """Take note of the scan.

        ``LoadImage`` turns to its other readers when ``read`` fails, and the reason is lost (or another reader fills
        the missing half of the scan with zeros): whatever can fail is left to :meth:`get_data`.

        Args:
            data: path of one scan.
            kwargs: none is known.

        Returns:
            The path, for :meth:`get_data`.
        """
        return ensure_tuple(data)

    def get_data(self, img: tuple[str | Path, ...]) -> tuple[np.ndarray, dict[str, Any]]:
        """Get voxels and metadata.

        Args:
            img: what :meth:`read` returned.

        Returns:
            Array (z, y, x), and ``affine`` and ``original_affine`` ((4, 4), z, y, x indices to RAS mm),
            ``spatial_shape``, ``space``, ``original_channel_dim``, and ``geometry``, the :class:`Geometry`.

        Raises:
            LunaError: as :func:`map_or_read`.
        """
        if len(img) != 1:
            raise LunaError(f"{', '.join(map(str, img))}: one scan at a time is read, found {len(img)} paths")
        voxels, geometry = map_or_read(img[0], seriesuid=self.seriesuid)
        return voxels, geometry.to_meta()


def _suffix(path: Path) -> str:
    if path.is_dir():
        return "dicom"
    name = path.name.lower()
    # The longest first, because .nii.gz ends with no other.
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            if not path.is_file():
                raise LunaError(f"{path}: no such file")
            return suffix
    if not path.exists():
        raise LunaError(f"{path}: no such file or folder")
    raise LunaError(f"{path}: unknown kind of file; known are {', '.join(SUFFIXES)} and folders of DICOM slices")


def _read_information(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with itk_errors(path):
        reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise LunaError(f"{path}: a scan has one number per voxel, found {reader.GetNumberOfComponents()}")
    if reader.GetDimension() != 3:
        size = " × ".join(map(str, reader.GetSize()))
        raise LunaError(f"{path}: a scan has 3 dimensions, found {reader.GetDimension()} ({size})")
    return reader


def _file_geometry(path: Path) -> Geometry:
    reader = _read_information(path)
    return Geometry.from_header(
        reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection(), source=path
    )
