"""A stage's peak: what earlier ones freed does not count for it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from clp_edge.pipeline.memory import PeakMemory

MIB = 2**20


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are not asked")
def test_freed_memory_does_not_count_for_the_next_stage() -> None:
    # small enough to lie in the heap, which glibc keeps below the highest piece in use
    small = [bytes(64 * 1024) for _ in range(200 * 16)]
    held = small.pop()
    del small
    with PeakMemory() as memory:
        began = resident_mib()
        grown = bytearray(64 * MIB)
        grown[::4096] = b"\1" * len(grown[::4096])
    assert memory.peak_mib is not None
    assert 60 < memory.peak_mib - began < 90
    assert len(held) == 64 * 1024


def test_a_kernel_that_cannot_reset_the_mark_measures_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("clp_edge.pipeline.memory._RESET", tmp_path / "none" / "clear_refs")
    with PeakMemory() as memory:
        pass
    assert memory.peak_mib is None
