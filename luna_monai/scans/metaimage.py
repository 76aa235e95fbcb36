"""Reading of MetaImage files (``.mhd`` with ``.raw`` or ``.zraw``, ``.mha``), the format of LUNA16.

ITK also reads this format, but fills the missing voxels of a truncated or damaged file with zeros. This module raises
an error instead. Uncompressed voxels are memory-mapped. The header is read here too, because ITK does not return
``HeaderSize``, ``CompressedDataSize`` and ``ElementDataFile``, which locate the voxels.

Format: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from pathlib import Path
from typing import Any

import numpy as np

from luna_monai.errors import LunaError
from luna_monai.scans.geometry import Geometry

_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG_LONG": 8}
_SIGNS = {"": "i", "U": "u"}
DTYPES = {f"MET_{sign}{name}": f"{kind}{size}" for name, size in _BYTES.items() for sign, kind in _SIGNS.items()}
DTYPES |= {"MET_FLOAT": "f4", "MET_DOUBLE": "f8"}
#: Allowed values of fields.
_ALLOWED = {"NDims": ["3"], "ElementNumberOfChannels": ["1"], "BinaryData": ["True"], "ElementType": [*DTYPES]}
_ALIAS = {"Rotation": "TransformMatrix", "Orientation": "TransformMatrix", "Position": "Offset", "Origin": "Offset"}
#: Longest line of a header. A file with a longer line is not a MetaImage.
MAX_LINE_BYTES = 4096


def read_fields(path: Path) -> dict[str, Any]:
    """Read the header of a MetaImage. The voxel file may be missing.

    Args:
        path: ``.mhd`` or ``.mha`` file.

    Returns:
        The fields of a :class:`~luna_monai.scans.header.FileHeader`, without ``path`` and ``seriesuid``.

    Raises:
        LunaError: when the file is not a MetaImage header, or not that of a scan with one number per voxel.
    """
    fields, end = _read_fields(path)

    def numbers(name: str, count: int, kind: type = float) -> list:
        raw = fields.get(name, "")
        try:
            values = [kind(value) for value in raw.split()]
        except ValueError:
            values = []
        if len(values) != count:
            raise LunaError(f"{path}: {name} must be {count} {'integers' if kind is int else 'numbers'}, found {raw!r}")
        return values

    def flag(name: str) -> bool:
        return fields.get(name, "").lower() in ("true", "1")

    for name, allowed in _ALLOWED.items():
        if fields.get(name) not in allowed:
            raise LunaError(f"{path}: {name} must be {' or '.join(allowed)}, found {fields.get(name)!r}")
    geometry = Geometry.from_header(
        numbers("DimSize", 3, int),
        numbers("ElementSpacing", 3),
        numbers("Offset", 3),
        np.reshape(numbers("TransformMatrix", 9), (3, 3)).T,  # each triple is the direction of one axis
        source=path,
    )
    data_file = Path(fields["ElementDataFile"])
    if data_file.is_absolute() or ".." in data_file.parts:
        rule = "the voxel file must be in the folder of the header"
        raise LunaError(f"{path}: {rule}, found ElementDataFile = {data_file}; copy it there and edit the header")
    is_local = data_file.name.upper() == "LOCAL"
    files = (path,) if is_local else (path, path.parent / data_file)
    order = ">" if flag("BinaryDataByteOrderMSB") or flag("ElementByteOrderMSB") else "<"
    dtype = np.dtype(order + DTYPES[fields["ElementType"]])
    (compressed_bytes,), (offset,) = numbers("CompressedDataSize", 1, int), numbers("HeaderSize", 1, int)
    if offset < 0 and files[-1].is_file():  # the voxels are the last bytes of the file
        offset = max(files[-1].stat().st_size - int(np.prod(geometry.size)) * dtype.itemsize, 0)
    return {
        "geometry": geometry,
        "dtype": dtype,
        "files": files,
        "offset": end if is_local else offset,
        "compressed": flag("CompressedData"),
        "compressed_bytes": compressed_bytes or None,
        "exact": True,
    }


def _read_fields(path: Path) -> tuple[dict[str, str], int]:
    """Read the fields of a header; return them and the size of the header in bytes."""
    fields = {"ElementNumberOfChannels": "1", "CompressedDataSize": "0", "HeaderSize": "0"}
    fields["TransformMatrix"] = "1 0 0 0 1 0 0 0 1"
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES).decode("utf-8", "replace"):
            name, separator, value = (part.strip() for part in line.partition("="))
            fields[_ALIAS.get(name, name)] = value
            if name == "ElementDataFile":
                return fields, stream.tell()
            if name and not separator:
                break
    raise LunaError(f"{path}: not a MetaImage header, or it is damaged; copy the scan again")
