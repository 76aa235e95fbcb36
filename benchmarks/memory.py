"""The memory that a process and its workers hold."""

from __future__ import annotations

from pathlib import Path

import psutil


def memory_in_use() -> float:
    """Tell what this process and its children hold, without mapped files, in bytes; shared memory counts once."""
    this = psutil.Process()
    return sum(map(_memory, [this, *this.children(recursive=True)]))


def _memory(process: psutil.Process) -> float:
    """Tell what a process holds without files that it has mapped, its share of what it shares, in bytes."""
    try:
        # https://www.kernel.org/doc/Documentation/ABI/testing/procfs-smaps_rollup
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines[1:])
        return sum(1024.0 * int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem"))
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(process.memory_full_info().uss)
    except psutil.Error:
        return 0.0
