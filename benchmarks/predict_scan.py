"""Time and memory of ``luna-monai predict`` without candidates, against another checkout of the code.

python benchmarks/predict_scan.py SCAN --baseline CHECKOUT [--repeats 5] [--detection]

The two take turns. --detection leaves the network out: reading, lungs and proposals alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import show

#: Reads the scan, finds lungs and proposes candidates; by the names of either checkout.
DETECTION = """
import sys
import numpy as np
from luna_monai.detection import BlobProposer
from luna_monai.detection.lungs import find_lungs
try:
    from luna_monai.scans import read_scan
    scan = read_scan(sys.argv[1])
    voxels, geometry = scan.voxels, scan.geometry
except ImportError:  # the baseline of version 0.1
    from luna_monai.scans import map_or_read
    voxels, geometry = map_or_read(sys.argv[1])
voxels = np.asarray(voxels)
BlobProposer()(voxels, geometry, find_lungs(voxels, geometry))
"""


def run(checkout: Path, command: list[str]) -> tuple[float, float]:
    """Run a command with the code of a checkout; seconds and the highest memory, MiB."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command[:4])} ended with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, help="file of a scan")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    parser.add_argument("--detection", action="store_true", help="leave the network out")
    arguments = parser.parse_args()
    scan = str(arguments.scan.resolve())
    checkouts = {"baseline": arguments.baseline.resolve(), "this code": Path(__file__).resolve().parent.parent}
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "luna_monai", "predict", scan, "--output", f"{folder}/found.csv"]
        if arguments.detection:
            command = [sys.executable, "-c", DETECTION, scan]
        for _ in range(arguments.repeats):
            for name, checkout in checkouts.items():
                results[name].append(run(checkout, command))
    seconds, memory = ({name: statistics.median(one[k] for one in results[name]) for name in checkouts} for k in (0, 1))
    show(
        ["", "s", "of the baseline", "memory, MiB"],
        [
            [name, f"{seconds[name]:.1f}", f"{seconds[name] / seconds['baseline']:.0%}", f"{memory[name]:.0f}"]
            for name in checkouts
        ],
    )


if __name__ == "__main__":
    main()
