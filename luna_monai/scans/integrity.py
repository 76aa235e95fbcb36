"""Damage in NIfTI and NRRD files that ITK does not notice.

ITK fills what a truncated NIfTI file lacks with zeros, does not compare gzip's checksums, and remarks on a damaged
header on standard error.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from pathlib import Path
from typing import IO, cast

from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from luna_monai.errors import LunaError

#: The longer of the two versions' headers.
NIFTI_HEADER_BYTES = 540
#: nibabel mends what it finds less serious than this.
NIFTI_ERROR_LEVEL = 30
#: No NRRD header is longer.
NRRD_HEADER_BYTES = 65536


def check_nifti_header(path: Path) -> int:
    """Check the header of a NIfTI file.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.

    Returns:
        How many bytes the file has according to its header, uncompressed.

    Raises:
        LunaError: when it is no NIfTI file, or the header is damaged.
    """
    quiet = logging.Logger("remarks of nibabel")
    quiet.disabled = True
    try:
        with _open(path) as stream:
            block = stream.read(NIFTI_HEADER_BYTES)
        kind = Nifti2Header if Nifti2Header.may_contain_header(block) else Nifti1Header
        if not kind.may_contain_header(block):
            raise HeaderDataError("no NIfTI header")
        header = kind.from_fileobj(io.BytesIO(block), check=False)
        header.check_fix(quiet, error_level=NIFTI_ERROR_LEVEL)
        voxels = math.prod(int(size) for size in header.get_data_shape())
        return int(header["vox_offset"]) + voxels * int(header.get_data_dtype().itemsize)
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise LunaError(f"{path}: no NIfTI file, or its header is damaged ({reason}); copy it again") from error
    except (EOFError, zlib.error, OSError) as error:
        raise LunaError(f"{path}: damaged or truncated ({error}); copy it again") from error


def check_nifti(path: Path) -> None:
    """Check that a NIfTI file is as long as its header says, and undamaged if it is compressed.

    Args:
        path: ``.nii`` or ``.nii.gz`` file.

    Raises:
        LunaError: when it is not.
    """
    expected = check_nifti_header(path)
    if _is_gzip(path):
        with path.open("rb") as stream:
            found = _gzip_length(stream, path)
    else:
        found = path.stat().st_size
    if found < expected:
        raise LunaError(f"{path}: found {found} bytes, but its header says {expected}; it is truncated, copy it again")


def check_nrrd(path: Path) -> None:
    """Check that an NRRD file holds its voxels itself, undamaged if they are compressed.

    The length is ITK's to check.

    Args:
        path: ``.nrrd`` file.

    Raises:
        LunaError: when the voxels are in another file, or damaged.
    """
    try:
        with path.open("rb") as stream:
            head, separator, _ = stream.read(NRRD_HEADER_BYTES).partition(b"\n\n")
            lines = [line.partition(b":") for line in head.lower().splitlines()]
            fields = {name.strip(): value.strip() for name, _, value in lines}
            if b"data file" in fields or b"datafile" in fields:
                raise LunaError(f"{path}: its voxels are in another file; save the scan as one .nrrd")
            if separator and fields.get(b"encoding") in (b"gzip", b"gz"):
                stream.seek(len(head) + len(separator))
                _gzip_length(stream, path)
    except OSError as error:
        raise LunaError(f"{path}: cannot be read ({error.strerror})") from error


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if _is_gzip(path) else path.open("rb")


def _gzip_length(stream: IO[bytes], path: Path) -> int:
    """Decompress to the end, where gzip's checksum is, and count."""
    found = 0
    try:
        with gzip.GzipFile(fileobj=stream) as unzipped:
            while piece := unzipped.read(1 << 20):
                found += len(piece)
    except (EOFError, zlib.error, OSError) as error:
        raise LunaError(f"{path}: damaged or truncated ({error}); copy it again") from error
    return found
