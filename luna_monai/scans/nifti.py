"""Reading of NIfTI files (``.nii``, ``.nii.gz``, versions 1 and 2).

nibabel reads the header. This package reads the voxels, because nibabel maps a truncated file without an error, and
holds a compressed file in memory twice.
"""

import logging
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.voxels import CHUNK_BYTES, GZIP_MAGIC, ZLIB_OR_GZIP

#: Size of the longer header, that of version 2. Extensions are skipped.
HEADER_BYTES = 540
#: nibabel raises an error for problems of this level, and corrects smaller ones.
ERROR_LEVEL = 30
#: Largest difference between positions from sform and qform without a warning, as a fraction of a voxel.
AGREEMENT = 0.1
#: Millimeters per unit of length, by the code of the unit. Most files use code 2 (mm) or 0 (unknown, read as mm).
MM = {1: 1000.0, 3: 0.001}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the header of a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.

    Returns:
        The fields of a :class:`~luna_monai.scans.header.FileHeader`, without ``path`` and ``seriesuid``.

    Raises:
        LunaError: when the file is not a NIfTI file or is damaged, or is not a single volume with one number per voxel.
    """
    warnings: list[str] = []
    try:
        with path.open("rb") as stream:
            block = stream.read(CHUNK_BYTES)
        compressed = block.startswith(GZIP_MAGIC)  # the suffix may be wrong
        if compressed:
            block = zlib.decompressobj(ZLIB_OR_GZIP).decompress(block, HEADER_BYTES)
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        header = kind(block[: kind.sizeof_hdr], check=False)
        header.check_fix(logging.Logger("nibabel checks", level=logging.CRITICAL + 1), error_level=ERROR_LEVEL)
        dtype, offset = header.get_data_dtype(), int(header["vox_offset"])
        sizes = [int(size) for size in header.get_data_shape()]
        while len(sizes) > 3 and sizes[-1] == 1:
            sizes.pop()
        mm = MM.get(int(header["xyzt_units"]) & 7, 1.0)
        affine = np.diag([-1, -1, 1, 1]) @ header.get_best_affine() * mm  # RAS to LPS
        spacing = voxel_sizes(affine)
        with np.errstate(divide="ignore", invalid="ignore"):
            geometry = Geometry.from_header(sizes, spacing, affine[:3, 3], affine[:3, :3] / spacing, source=path)
        if header["sform_code"] > 0 and header["qform_code"] > 0:
            corners = np.array(list(np.ndindex(2, 2, 2))) * np.subtract(sizes, 1)
            by_sform, by_qform = (apply_affine(form, corners) for form in (header.get_sform(), header.get_qform()))
            distance = mm * np.linalg.norm(by_sform - by_qform, axis=1).max()
            if not distance <= AGREEMENT * spacing.min():
                warnings.append(f"sform and qform disagree by up to {distance:.1f} mm; the sform is used")
        elif header["sform_code"] <= 0 and header["qform_code"] <= 0:
            warnings.append("the header gives no position in the patient (sform and qform have code 0)")
    except (HeaderDataError, WrapStructError, ValueError, OverflowError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise LunaError(f"{path}: not a NIfTI file, or its header is damaged ({reason}); copy it again") from error
    if dtype.kind not in "iuf" or offset < kind.sizeof_hdr:
        raise LunaError(f"{path}: a scan has one number per voxel, found type {dtype} (vox_offset {offset})")
    scaling = (float(header["scl_slope"]), float(header["scl_inter"]))
    slope, intercept = (value if math.isfinite(value) else 0.0 for value in scaling)
    return {
        "geometry": geometry,
        "dtype": dtype,
        "files": (path,),
        "warnings": tuple(warnings),
        "offset": 0 if compressed else offset,
        "compressed": compressed,
        "skip": offset,
        "slope": slope or 1.0,  # by the standard, a slope of 0 means no rescaling
        "intercept": intercept if slope else 0.0,
    }
