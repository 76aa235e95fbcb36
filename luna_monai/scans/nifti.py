"""NIfTI files (``.nii``, ``.nii.gz``, version 1 and 2), read by nibabel's rules.

nibabel reads the header. The voxels are read here, because nibabel maps a truncated file without an error, and holds
a compressed one in memory twice.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import zlib
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry
from luna_monai.scans.header import FileHeader
from luna_monai.scans.sources import scan_name
from luna_monai.scans.voxels import CHUNK_BYTES, GZIP_MAGIC, LARGEST

#: The longer of the two versions' headers; extensions are skipped.
HEADER_BYTES = 540
#: nibabel corrects what it finds less serious than this.
ERROR_LEVEL = 30
#: Positions by the two transforms of a header that differ by a larger part of a voxel are worth a warning.
AGREEMENT = 0.1
#: mm in a unit of length by its code; most files give 2, which is mm, or nothing.
MM = {1: 1000.0, 3: 0.001}


def read_nifti_header(path: Path) -> FileHeader:
    """Read the header of a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.

    Returns:
        The header.

    Raises:
        LunaError: when it is not a NIfTI file, is damaged or truncated, or is not one volume of one number per voxel.
    """
    block, compressed = _first_bytes(path)
    warnings: list[str] = []
    try:
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        if not kind.may_contain_header(block):
            raise HeaderDataError("no NIfTI header")
        quiet = logging.Logger("remarks of nibabel")
        quiet.disabled = True
        header = kind.from_fileobj(io.BytesIO(block[: kind.sizeof_hdr] + bytes(4)), check=False)
        header.check_fix(quiet, error_level=ERROR_LEVEL)
        dtype = header.get_data_dtype()
        offset = int(header["vox_offset"])
        geometry = _geometry(path, header, warnings)
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise LunaError(f"{path}: not a NIfTI file, or its header is damaged ({reason}); copy it again") from error
    if dtype.kind not in "iuf" or offset < kind.sizeof_hdr:
        raise LunaError(f"{path}: a scan has one number per voxel, found type {dtype} (vox_offset {offset})")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard's sign for "stored values are HU"
        slope, intercept = 1.0, 0.0
    elif not math.isfinite(intercept):
        warnings.append(f"scl_inter is {intercept}; it counts as 0")
        intercept = 0.0
    if max(abs(slope), abs(intercept)) > LARGEST:
        raise LunaError(f"{path}: HU cannot be rescaled by scl_slope {slope:g} and scl_inter {intercept:g}")
    return FileHeader(
        format="NIfTI",
        path=path,
        seriesuid=scan_name(path),
        geometry=geometry,
        dtype=dtype,
        files=(path,),
        warnings=tuple(warnings),
        offset=0 if compressed else offset,
        compressed=compressed,
        skip=offset,
        slope=slope,
        intercept=intercept,
    )


def _first_bytes(path: Path) -> tuple[bytes, bool]:
    """Read the bytes of the header, and tell whether they are compressed by what the file begins with."""
    try:
        with path.open("rb") as stream:
            block = stream.read(CHUNK_BYTES)
            if not block.startswith(GZIP_MAGIC):
                return block[:HEADER_BYTES], False
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(block, HEADER_BYTES), True
    except (zlib.error, OSError) as error:
        raise LunaError(f"{path}: damaged or truncated ({error}); copy it again") from error


def _geometry(path: Path, header: Nifti1Header, warnings: list[str]) -> Geometry:
    sizes = [int(size) for size in header.get_data_shape()]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    affine = header.get_best_affine()
    affine = np.diag([-1, -1, 1, 1]) @ affine * MM.get(int(header["xyzt_units"]) & 7, 1.0)  # RAS to LPS
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        geometry = Geometry.from_header(sizes, spacing, affine[:3, 3], affine[:3, :3] / spacing, source=path)
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        _compare(header, sizes, warnings)
    elif header["sform_code"] <= 0 and header["qform_code"] <= 0:
        warnings.append("the header does not say where the scan is in the patient (sform and qform have code 0)")
    return geometry


def _compare(header: Nifti1Header, sizes: list[int], warnings: list[str]) -> None:
    """Warn where sform and qform place voxels differently; nibabel takes the sform."""
    try:
        qform = header.get_qform()
    except HeaderDataError:
        return
    corners = np.array(list(itertools.product(*((0, size - 1) for size in sizes))))
    by_sform, by_qform = (apply_affine(form, corners) for form in (header.get_sform(), qform))
    distances = np.linalg.norm(by_sform - by_qform, axis=1)
    worst = int(distances.argmax())
    if not distances[worst] <= AGREEMENT * np.linalg.norm(header.get_sform()[:3, :3], axis=0).min():
        first, second = (", ".join(f"{value:.1f}" for value in place[worst]) for place in (by_sform, by_qform))
        warnings.append(
            f"sform and qform disagree: voxel x,y,z {tuple(corners[worst].tolist())} is at ({first}) mm RAS by "
            f"the sform and at ({second}) by the qform; the sform is used"
        )
