"""Temperature, and whether something slowed the device down between two looks.

Read: the thermal zones; each processor's throttle counts (x86: thermal_throttle); a Jetson's
over-current events (`oc*_event_cnt`: 1 under-voltage, 2 average and 3 instantaneous over-current,
NVIDIA's platform power guide); the cooling devices that lower a clock (a fan lowers none); NVML's
reasons. The last two hold for a moment only, so `Watch.look` is called all through the runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from clp_edge.bench.probes.files import ProbeFaultError, line, number_or_none
from clp_edge.bench.probes.nvml import Nvml

# Cooling devices whose state above 0 means a lowered clock, on x86 and on Jetsons.
SLOWS = re.compile(
    r"throttle|^cpufreq|^devfreq|^processor|hot-surface|intel_powerclamp", re.IGNORECASE
)
EVENTS = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}
# A clock below this share of what it was in the first runs is a warning of its own.
SLOWER = 0.9


@dataclass(frozen=True)
class Heat:
    """One look: degrees C by zone, and counters of slowing down since boot by what they count."""

    celsius: dict[str, float]
    events: dict[str, int]

    @property
    def hottest(self) -> tuple[str, float] | None:
        """The hottest zone."""
        return max(self.celsius.items(), key=lambda item: item[1], default=None)


def look(root: Path, nvml: Nvml | None = None) -> Heat:
    """Temperatures and counters now. A zone that is switched off or not readable is left out."""
    celsius: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        milli = number_or_none(zone / "temp")
        name = line(zone / "type") or zone.name
        # an unused sensor reads exactly 0 or far below it
        if milli is not None and milli > 0:
            name = name if name not in celsius else f"{name} {zone.name}"
            celsius[name] = milli / 1000
    for gpu in nvml.gpus if nvml is not None else ():
        try:
            celsius[f"GPU {gpu.index}"] = nvml.celsius(gpu) if nvml is not None else 0.0
        except ProbeFaultError:
            continue
    return Heat(celsius, {**_processor_counts(root), **_current_events(root)})


def slowing_now(root: Path, nvml: Nvml | None = None) -> list[str]:
    """What lowers a clock at this moment."""
    found = []
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = line(device / "type") or ""
        if SLOWS.search(kind) and (number_or_none(device / "cur_state") or 0) > 0:
            found.append(kind)
    for gpu in nvml.gpus if nvml is not None else ():
        try:
            reasons = nvml.throttled(gpu) if nvml is not None else ()
        except ProbeFaultError:
            continue
        found += [f"GPU {gpu.index}: {reason}" for reason in reasons]
    return found


def frequency_mhz(root: Path) -> float | None:
    """The clock of the fastest of eight processors now; None where the kernel does not say."""
    # at most eight: on x86 the question wakes the processor that is asked
    files = islice((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), 8)
    khz = [value for path in files if (value := number_or_none(path)) is not None]
    return max(khz) / 1000 if khz else None


@dataclass
class Watch:
    """What was seen during the runs that count."""

    root: Path
    nvml: Nvml | None
    looks: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    """what lowered a clock -> at how many looks"""
    mhz: list[float] = field(default_factory=list)
    """the fastest processor's clock at each look"""

    def look(self) -> None:
        """One look; to be called while a run is under way."""
        self.looks += 1
        for what in slowing_now(self.root, self.nvml):
            self.seen[what] = self.seen.get(what, 0) + 1
        clock = frequency_mhz(self.root)
        if clock is not None:
            self.mhz.append(clock)


def throttled(before: Heat, after: Heat, watch: Watch) -> list[str]:
    """One line for each sign that the device was slowed down; empty where there is none."""
    lines = []
    for name, count in after.events.items():
        more = count - before.events.get(name, count)
        if more > 0:
            lines.append(f"{name} ({more} times)")
    lines += [f"{what} (at {times} of {watch.looks} looks)" for what, times in watch.seen.items()]
    third = len(watch.mhz) // 3
    if third >= 3:
        early, late = sorted(watch.mhz[:third])[third // 2], sorted(watch.mhz[-third:])[third // 2]
        if late < SLOWER * early:
            lines.append(f"the processor's clock fell from {early:.0f} to {late:.0f} MHz")
    return lines


def _processor_counts(root: Path) -> dict[str, int]:
    """Throttling of cores and packages since boot (x86), summed over the processors."""
    found: dict[str, int] = {}
    for kind in ("core", "package"):
        files = (root / "sys/devices/system/cpu").glob(
            f"cpu[0-9]*/thermal_throttle/{kind}_throttle_count"
        )
        counts = [value for path in files if (value := number_or_none(path)) is not None]
        if counts:
            # a package's count stands with each of its processors: the largest is one package's
            found[f"the processor's {kind} throttled"] = (
                sum(counts) if kind == "core" else max(counts)
            )
    return found


def _current_events(root: Path) -> dict[str, int]:
    """A Jetson's over-current and under-voltage events since boot."""
    found: dict[str, int] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        for channel, what in EVENTS.items():
            count = number_or_none(folder / f"oc{channel}_event_cnt")
            if count is not None:
                found[f"throttled by {what}"] = count
    return found
