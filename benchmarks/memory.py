"""Memory of a process and its workers."""

from __future__ import annotations

from pathlib import Path

import psutil


def memory_in_use() -> float:
    """Return the memory of this process and its children in bytes, without mapped files; shared memory counts once."""
    this = psutil.Process()
    return sum(map(_memory, [this, *this.children(recursive=True)]))


def _memory(process: psutil.Process) -> float:
    """Return the memory of a process in bytes, without mapped files, with its proportional share of shared memory."""
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
