"""The read bandwidth of the memory, measured: what decode speeds are held against.

All threads in use read one buffer of at least four times the last-level cache, each its own slice,
with numpy reductions that release the interpreter lock. A buffer that fits in the cache would
measure the cache. The median pass counts, as the median counts of the decode speeds that are held
against it (on a shared machine single passes were seen at 1.7 times the median); the fastest pass
is kept beside it.

>>> read_bandwidth(threads=2).gb_per_s                                      # doctest: +SKIP
33.1
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clp_edge.records import BandwidthRecord

CACHE_MULTIPLE = 4
MINIMUM_BUFFER = 64 << 20
# Never take more than this share of the memory that is free now.
MEMORY_SHARE = 0.25
# Two reductions that the compiler vectorises everywhere: which is faster differs by processor.
READERS: tuple[tuple[type, Callable[[np.ndarray], object]], ...] = (
    (np.float32, np.maximum.reduce),
    (np.int64, np.bitwise_or.reduce),
)


def last_level_cache(root: Path = Path("/")) -> int | None:
    """Bytes of last-level cache, all instances together; None where sysfs does not say."""
    instances: dict[tuple[int, str], int] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((index / "level").read_text())
            size = _size((index / "size").read_text())
            kind = (index / "type").read_text().strip()
            shared = (index / "shared_cpu_list").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and size:
            instances[level, shared] = size
    if not instances:
        return None
    top = max(level for level, _ in instances)
    return sum(size for (level, _), size in instances.items() if level == top)


def read_bandwidth(
    threads: int, *, seconds: float = 1.0, root: Path = Path("/")
) -> BandwidthRecord | None:
    """Measure for about `seconds`; None when the cache size is unknown or memory is short."""
    cache = last_level_cache(root)
    if cache is None:
        return None
    size = max(CACHE_MULTIPLE * cache, MINIMUM_BUFFER)
    size += -size % 4096
    available = _available_memory(root)
    if available is not None and size > MEMORY_SHARE * available:
        return None
    buffer = np.ones(size // 8, dtype=np.int64)  # written, so that every page is really there
    medians, fastest, passes = [], float("inf"), 0
    with ThreadPoolExecutor(threads) as pool:
        for dtype, reader in READERS:
            slices: list[np.ndarray] = np.array_split(buffer.view(dtype), threads)
            list(pool.map(reader, slices))  # starts the threads, warms the pages
            times: list[float] = []
            end = time.perf_counter() + seconds / len(READERS)
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                list(pool.map(reader, slices))
                times.append(time.perf_counter() - start)
            medians.append(float(np.median(times)))
            fastest = min(fastest, *times)
            passes += len(times)
    return BandwidthRecord(
        gb_per_s=size / min(medians) / 1e9,
        fastest_gb_per_s=size / fastest / 1e9,
        buffer_bytes=size,
        cache_bytes=cache,
        threads=threads,
        passes=passes,
    )


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    if match is None:
        return 0
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def _available_memory(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) << 10 if match else None
