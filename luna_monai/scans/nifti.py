"""NIfTI files (``.nii``, ``.nii.gz``, version 1 and 2), read by nibabel's rules.

nibabel reads the header. The voxels are read here, because nibabel maps a truncated file without an error, and holds
a compressed one in memory twice.
"""

from __future__ import annotations

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

#: The longer of the two versions' headers; extensions are skipped.
HEADER_BYTES = 540
#: nibabel corrects what it finds less serious than this.
ERROR_LEVEL = 30
#: Positions by the two transforms of a header that differ by a larger part of a voxel are worth a warning.
AGREEMENT = 0.1
#: mm in a unit of length by its code; most files give 2, which is mm, or nothing.
MM = {1: 1000.0, 3: 0.001}


def read_fields(path: Path) -> dict[str, Any]:
    """Read the header of a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.

    Returns:
        The fields of a :class:`~luna_monai.scans.header.FileHeader` but for its path and name.

    Raises:
        LunaError: when it is not a NIfTI file, is damaged or truncated, or is not one volume of one number per voxel.
    """
    warnings: list[str] = []
    try:
        with path.open("rb") as stream:
            block = stream.read(CHUNK_BYTES)
        compressed = block.startswith(GZIP_MAGIC)  # whatever its name says
        if compressed:
            block = zlib.decompressobj(ZLIB_OR_GZIP).decompress(block, HEADER_BYTES)
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        header = kind(block[: kind.sizeof_hdr], check=False)
        header.check_fix(logging.Logger("remarks of nibabel", level=logging.CRITICAL + 1), error_level=ERROR_LEVEL)
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
            warnings.append("the header does not say where the scan is in the patient (sform and qform have code 0)")
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
        "slope": slope or 1.0,  # 0 is the standard's sign for "stored values are HU"
        "intercept": intercept if slope else 0.0,
    }
