"""The largest resident set of this very process, and handing back what it no longer uses.

On Linux `getrusage` keeps the parent's peak across fork and exec (the kernel carries the old
memory map's mark over), so a child of a large process would report the parent's memory: VmHWM
belongs to the memory map of the program that runs now.
"""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_mib() -> float:
    """Peak resident set, MiB: private memory, and pages of mapped files while resident."""
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.M)
    except FileNotFoundError:
        match = None
    if match is not None:
        return int(match[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def hand_back() -> None:
    """Hand freed memory back to the system, where the C library is one that can (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    trim(0)
