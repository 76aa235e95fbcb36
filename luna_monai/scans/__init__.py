"""CT scans: finding them, reading them, and the geometry of their voxels."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "geometry": ["Geometry", "orient"],
        "header": ["ScanHeader"],
        "scan": ["Scan", "read_header", "read_scan"],
        "voxels": ["AIR", "voxels_sha256"],
        "sources": ["SUFFIXES", "ScanSource", "find_scans", "list_scans"],
    },
)
