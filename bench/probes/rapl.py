"""The processor's own energy counters (RAPL) in /sys/class/powercap, in microjoules.

Packages and, where there are any, their DRAM domains are added; cores and uncore lie inside the
package, and psys holds all of it once more. The counter starts again at `max_energy_range_uj`
(262 kJ on many processors: 44 minutes at 100 W), so it is read often and unwrapped. Since
CVE-2020-8694 the files belong to root, and another user gets no figure but the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

from clp_edge.bench.probes.files import ProbeFaultError, line, number, number_or_none
from clp_edge.bench.probes.source import Source


class Counter:
    """One domain's counter, unwrapped: joules since the first reading."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "energy_uj"
        self.range_uj = number_or_none(folder / "max_energy_range_uj")
        self._last: int | None = None
        self._total = 0

    def read(self) -> float:
        """Joules since the first call. Raises ProbeFaultError if unreadable or of unknown range."""
        value = number(self.file)
        if self._last is not None:
            step = value - self._last
            if step < 0:
                if not self.range_uj:
                    self._last = value
                    raise ProbeFaultError(f"{self.file} started again, and its range is not known")
                step += self.range_uj
            self._total += step
        self._last = value
        return self._total * 1e-6


def find(root: Path) -> tuple[Source | None, str]:
    """The energy of all packages with their memory, or why it is not known."""
    zones = sorted((root / "sys/class/powercap").glob("*-rapl:*"))
    names = {zone: line(zone / "name") or "" for zone in zones if ":" in zone.name}
    used = [
        zone
        for zone, name in names.items()
        if re.fullmatch(r"package-\d+(-die-\d+)?", name) or name == "dram"
    ]
    packages = [zone for zone in used if names[zone] != "dram"]
    if not packages:
        return None, "no RAPL energy counter in sysfs"
    counters = [Counter(zone) for zone in used]

    def joules() -> float:
        return sum(counter.read() for counter in counters)

    try:
        joules()
    except ProbeFaultError as error:
        return None, f"RAPL is not readable ({error}; root may read it)"
    memory = " and its memory" if len(used) > len(packages) else ""
    covers = f"the processor's package{memory}, all programs on it"
    return Source("RAPL", covers, "joules", joules), ""
