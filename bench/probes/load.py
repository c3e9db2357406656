"""What other programs take of the processors' time, and the wait until they are done."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clp_edge.bench.probes.files import read

# Share of the processors' time that others may take before the numbers deserve a warning.
BUSY_SHARE = 0.10
# A passing job gets this long to end; a machine that is busy for good is measured as it is.
CALM_LIMIT_S = 20.0
LOOK_S = 1.0


def busy_share(
    root: Path = Path("/"),
    *,
    seconds: float = 0.4,
    sleep: Callable[[float], object] = time.sleep,
) -> float | None:
    """Share of all processors' time that is taken while this process sleeps; None where unreadable.

    The load average also counts our own stages of a minute ago; this looks at now.
    """
    before = _processor_ticks(root)
    if before is None:
        return None
    sleep(seconds)
    after = _processor_ticks(root)
    if after is None or after[1] <= before[1]:
        return None
    return 1.0 - (after[0] - before[0]) / (after[1] - before[1])


@dataclass(frozen=True)
class Load:
    """What other programs took of all processors' time before the first run."""

    before: float | None
    """share at the first look; None where it cannot be read"""
    after: float | None
    """share at the last look, after the wait"""
    waited_s: float

    @property
    def busy(self) -> bool:
        """Whether others are still running after the wait."""
        return self.after is not None and self.after > BUSY_SHARE


def wait_until_calm(
    root: Path = Path("/"),
    *,
    limit_s: float = CALM_LIMIT_S,
    sleep: Callable[[float], object] = time.sleep,
    say: Callable[[str], object] = lambda text: None,
) -> Load:
    """Look at the load; while the machine is busy look again each second, `limit_s` at most."""
    share = before = busy_share(root, sleep=sleep)
    waited = 0.0
    while share is not None and share > BUSY_SHARE and waited < limit_s:
        say(f"waiting for other programs, which take {share:.0%} of the processors' time")
        share = busy_share(root, seconds=LOOK_S, sleep=sleep)
        waited += LOOK_S
    return Load(before, share, waited)


def busy_warning(load: Load, average: float | None) -> str | None:
    """What to tell the user where something else was running, or None."""
    if load.before is None or load.before <= BUSY_SHARE:
        return None
    taken = f"{load.before:.0%} of its processors' time was taken"
    if load.after is not None and load.after <= BUSY_SHARE:
        return (
            f"the machine was busy before the first run ({taken}), and calm after a wait of "
            f"{load.waited_s:.0f} s"
        )
    still = (
        "" if load.after is None else f", {load.after:.0%} after a wait of {load.waited_s:.0f} s"
    )
    loaded = "" if average is None else f" (load average {average:.1f})"
    return (
        f"the machine was busy before the first run: {taken}{still}{loaded}; close other programs "
        "and measure again"
    )


def _processor_ticks(root: Path) -> tuple[int, int] | None:
    """Idle (with I/O wait) and all ticks since boot, over all processors."""
    match = re.match(r"cpu\s+([\d ]+)", read(root / "proc/stat") or "")
    if match is None:
        return None
    ticks = [int(value) for value in match[1].split()][:8]  # guest time is counted in user time
    return ticks[3] + (ticks[4] if len(ticks) > 4 else 0), sum(ticks)
