"""CT scans: where they are, how they are read, and where their voxels lie."""

from luna_monai.lazy import lazy_exports

__all__, __getattr__ = lazy_exports(
    __name__,
    {
        "readers": ["Geometry", "SimpleITKReader", "check_scan", "files_of_scan", "map_or_read", "read_geometry"],
        "scan": ["ScanSource", "list_scans", "load_scan"],
    },
)
