"""What other programs took of the processors while a round was measured.

The look at the load before the first run (`probes.load`) cannot see a neighbour that comes later.
Of all processors' busy time in a round, that of this process and of the runtimes' processes is
ours; the rest is others'. The result keeps every round, whatever it was disturbed by: the load is
only told, and decides, before a round's figures are looked at, whether more rounds are taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from clp_edge.bench.probes.files import read
from clp_edge.bench.probes.load import BUSY_SHARE


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time that these processes have taken so far, s; one that is gone counts nothing."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


class Neighbours:
    """Call `look` after each round. `ours` says how many processor seconds we took so far."""

    def __init__(self, root: Path, ours: Callable[[], float]) -> None:
        self.root, self.ours = root, ours
        self.shares: list[float | None] = []
        self._before = (self._ticks(), ours())

    def look(self) -> None:
        """Note the share of all processors' time that others took since the last look."""
        ticks, ours = self._ticks(), self.ours()
        (before, ours_before), self._before = self._before, (ticks, ours)
        share = None
        if ticks is not None and before is not None and ticks[1] > before[1]:
            hertz = os.sysconf("SC_CLK_TCK")
            taken = ticks[0] - before[0] - (ours - ours_before) * hertz
            share = min(1.0, max(0.0, taken / (ticks[1] - before[1])))
        self.shares.append(share)

    @property
    def disturbed(self) -> int:
        """In how many rounds others took more than a calm machine's share."""
        return sum(share is not None and share > BUSY_SHARE for share in self.shares)

    def warning(self) -> str | None:
        """What a reader must know of it, or None."""
        if not self.disturbed:
            return None
        most = max(share for share in self.shares if share is not None)
        return (
            f"other programs took up to {most:.0%} of the processors' time in {self.disturbed} of "
            f"{len(self.shares)} rounds; they are kept: close other programs and measure again"
        )

    def _ticks(self) -> tuple[int, int] | None:
        """Busy and all ticks since boot, over all processors."""
        first, *fields = (read(self.root / "proc/stat") or "").partition("\n")[0].split() or [""]
        if first != "cpu" or len(fields) < 4:
            return None
        ticks = [int(value) for value in fields[:8]]  # guest time is counted in user time
        idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
        return sum(ticks) - idle, sum(ticks)
