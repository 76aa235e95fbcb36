"""Time and memory of ``luna-monai predict`` without candidates, compared with another checkout of the code.

python benchmarks/predict_scan.py SCAN --baseline CHECKOUT [--repeats 5]

The two run in turn. Processor time is the total over all threads; it depends less on other jobs of the machine.
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


def run(checkout: Path, command: list[str]) -> tuple[float, float, float]:
    """Run a command with the code of a checkout; return seconds, processor seconds and peak memory in MiB."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command[:4])} ended with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, help="scan file")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--repeats", type=int, default=5, help="default 5")
    arguments = parser.parse_args()
    scan = str(arguments.scan.resolve())
    checkouts = {"baseline": arguments.baseline.resolve(), "this code": Path(__file__).resolve().parent.parent}
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "luna_monai", "predict", scan, "--output", f"{folder}/found.csv"]
        for _ in range(arguments.repeats):
            for name, checkout in checkouts.items():
                results[name].append(run(checkout, command))
    wall, cpu, memory = (
        {name: statistics.median(one[k] for one in results[name]) for name in checkouts} for k in range(3)
    )
    show(
        ["", "time, s", "of the baseline", "processor time, s", "of the baseline", "memory, MiB"],
        [
            [
                name,
                *(
                    cell
                    for part in (wall, cpu)
                    for cell in (f"{part[name]:.1f}", f"{part[name] / part['baseline']:.0%}")
                ),
                f"{memory[name]:.0f}",
            ]
            for name in checkouts
        ],
    )


if __name__ == "__main__":
    main()
