"""What a runtime's process takes: private memory, mapped weights, GPU memory, unified memory.

Weights that a runtime maps are page cache: they count in the resident set once touched, and the
system may take them back (PITFALLS 20). So they are told apart. A Jetson has one memory for both
processors: there the fall of MemAvailable says what a runtime takes beyond the page cache, and it
counts what everyone took in that time.
"""

from __future__ import annotations

import re
from pathlib import Path

from clp_edge.bench.probes.files import ProbeFaultError, first, read
from clp_edge.bench.probes.nvml import Nvml

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)$")


def private_mib(root: Path, pid: int) -> float | None:
    """Memory of that process which is no file's: RssAnon and RssShmem."""
    status = read(root / f"proc/{pid}/status")
    parts = [first(rf"^{name}:\s+(\d+) kB", status) for name in ("RssAnon", "RssShmem")]
    known = [int(part) for part in parts if part is not None]
    return sum(known) / 1024 if known else None


def mapped_mib(root: Path, pid: int, artifact: Path) -> float | None:
    """Resident pages of the artifact's own file or files in that process; None if unreadable.

    0.0 means that the runtime has copied its weights instead.
    """
    text = read(root / f"proc/{pid}/smaps")
    if text is None:
        return None
    under = str(artifact.resolve())
    total, inside = 0, False
    for row in text.splitlines():
        start = _MAPPING.match(row)
        if start:
            inside = start[1] == under or start[1].startswith(f"{under}/")
        elif inside and row.startswith("Rss:"):
            total += int(row.split()[1])
    return total / 1024


def available_mib(root: Path) -> float | None:
    """What the kernel could give out without swapping: MemAvailable."""
    kib = first(r"^MemAvailable:\s+(\d+) kB", read(root / "proc/meminfo"))
    return int(kib) / 1024 if kib else None


def gpu_used_by_mib(nvml: Nvml, pid: int) -> float | None:
    """GPU memory of that process, all GPUs together; None where NVML does not list it."""
    try:
        parts = [nvml.used_by_mib(gpu, pid) for gpu in nvml.gpus]
    except ProbeFaultError:
        return None
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def gpu_used_mib(nvml: Nvml) -> float | None:
    """GPU memory that everyone takes, all GPUs together."""
    try:
        return sum(nvml.used_mib(gpu) for gpu in nvml.gpus)
    except ProbeFaultError:
        return None
