"""CT scans: where they are, how they are read, and where their voxels lie."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "geometry": ["Geometry"],
        "header": ["ScanHeader"],
        "hounsfield": ["AIR", "voxels_sha256"],
        "orientation": ["orient"],
        "scan": ["Scan", "read_header", "read_scan"],
        "sources": ["SUFFIXES", "ScanSource", "find_scans", "list_scans"],
    },
)
