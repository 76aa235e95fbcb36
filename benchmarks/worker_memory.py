"""Peak memory of a pre-cache worker, compared with a limit of one CT with its crops and 300 MB."""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from common import SHAPE, open_cache, show, write_dataset

from luna_monai.data import Precache


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for scans and caches")
    parser.add_argument("--measure", type=Path, default=None, help="dataset to crop in this process (used internally)")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        # Only memory allocated from here on counts: workers share the libraries with their parent process.
        _, cache = open_cache(arguments.measure, arguments.folder / "cache_memory")
        with Path("/proc/self/clear_refs").open("w") as file:
            file.write("5")  # reset the peak
        before = _status("VmRSS")
        Precache(cache).run()
        shutil.rmtree(cache.cache_dir)
        print(_status("VmHWM") - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    rows = []
    for kind in ("raw", "zraw"):
        dataset = write_dataset(arguments.folder / f"luna_{kind}", 3)
        if kind == "zraw":
            _compress(dataset)
        command = [sys.executable, __file__, str(arguments.folder), "--measure", str(dataset)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        _, cache = open_cache(dataset, None)
        crops = cache.bytes_needed([0])
        limit = 2 * SHAPE[0] * SHAPE[1] * SHAPE[2] + crops + 300e6
        rows.append((kind, f"{int(output[0]) / 1e6:,.0f}", f"{limit / 1e6:,.0f}", f"{int(output[1]) / 1e6:,.0f}"))
    show(["voxels", "peak of the work, MB", "limit, MB", "whole process, MB"], rows)


def _compress(dataset: Path) -> None:
    import SimpleITK as sitk

    for path in sorted(dataset.glob("subset*/*.mhd")):
        if path.with_suffix(".raw").exists():
            image = sitk.ReadImage(str(path))
            path.with_suffix(".raw").unlink()
            sitk.WriteImage(image, str(path), useCompression=True)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    main()
