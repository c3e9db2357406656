"""Which processors the timed children run on: one of each core, the fastest first.

A thread that moves to another processor leaves its cache behind, and two threads on one core share
it. Every artifact of a bench gets the same processors, and the record names them. Pinning is asked
of the operating system for our own children alone: no setting of the device changes.

>>> choose_cpus(2, allowed={0, 1, 2, 3}, root=Path("/nowhere"))
(0, 1)
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

CPUS = Path("sys/devices/system/cpu")


def choose_cpus(
    threads: int, *, allowed: Collection[int] | None = None, root: Path = Path("/")
) -> tuple[int, ...] | None:
    """`threads` of the processors this process may use; None where pinning is not possible.

    Cores of more capacity first (`cpu_capacity` on Arm, the top frequency elsewhere); a second
    thread of a core only where there are more threads than cores. None, too, where there are more
    threads than processors: then the operating system deals them out as it likes.
    """
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            return None
        allowed = os.sched_getaffinity(0)
    if threads > len(allowed):
        return None
    first, second, seen = list[int](), list[int](), set[tuple[str, str]]()
    for cpu in sorted(allowed, key=lambda one: (-_capacity(one, root), one)):
        core = _core(cpu, root)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return tuple(sorted((first + second)[:threads]))


def parse_cpus(text: str) -> tuple[int, ...]:
    """A list as taskset and the kernel write it. Raises ValueError.

    >>> parse_cpus("0-2,4")
    (0, 1, 2, 4)
    """
    found = set[int]()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        first, last = int(low), int(high or low)
        if first < 0 or last < first or last - first > 4096:
            raise ValueError(f"{part!r} is no range of processors")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def _core(cpu: int, root: Path) -> tuple[str, str]:
    folder = root / CPUS / f"cpu{cpu}" / "topology"
    core, package = _read(folder / "core_id"), _read(folder / "physical_package_id")
    return (package or "", core) if core is not None else ("cpu", str(cpu))


def _capacity(cpu: int, root: Path) -> int:
    folder = root / CPUS / f"cpu{cpu}"
    text = _read(folder / "cpu_capacity") or _read(folder / "cpufreq/cpuinfo_max_freq") or "0"
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
