"""The device card: what the numbers were taken on. Reads files, changes no setting.

Everything comes from /proc and /sys (and two files of a Jetson), through a `root` that a test may
point at a tree of its own. Jetson boards: the model from the device tree, the power mode from
nvpmodel's status file; elsewhere the platform profile and the frequency governor say how fast the
processor may go. jetson_stats is not used (AGPL).

>>> probe().cpu_model     # doctest: +SKIP
'AMD Ryzen 7 5800U'
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clp_edge.bench.bandwidth import last_level_cache
from clp_edge.jetson import jetson_model

# Arm processors do not spell their name in /proc/cpuinfo: (implementer, part) -> core.
ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd40"): "Neoverse V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd4f"): "Neoverse V2",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}
# Share of the processors' time that others may take before the numbers deserve a warning.
BUSY_SHARE = 0.10
# A passing job gets this long to end; a machine that is busy for good is measured as it is.
CALM_LIMIT_S = 20.0
LOOK_S = 1.0


@dataclass(frozen=True)
class DeviceCard:
    """The machine as its files describe it; None where they do not say."""

    cpu_model: str
    architecture: str
    cores: int
    threads: int
    memory_mib: int | None
    last_level_cache_bytes: int | None
    os: str
    kernel: str
    gpus: tuple[str, ...]
    gpu_driver: str | None
    jetson_model: str | None
    power_mode: str | None
    cpu_governor: str | None
    load_average_1m: float | None

    @property
    def name(self) -> str:
        """The shortest name a reader would recognise."""
        return self.jetson_model or self.cpu_model

    def as_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return {**asdict(self), "gpus": list(self.gpus), "name": self.name}


def probe(root: Path = Path("/")) -> DeviceCard:
    """Read the card of this device, or of the file tree under `root`."""
    cpuinfo = _read(root / "proc/cpuinfo") or ""
    board = jetson_model(root)
    return DeviceCard(
        cpu_model=_cpu_model(cpuinfo),
        architecture=platform.machine(),
        cores=_physical_cores(cpuinfo),
        threads=max(len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)), 1),
        memory_mib=_memory_mib(root),
        last_level_cache_bytes=last_level_cache(root),
        os=_os_name(root),
        kernel=(_read(root / "proc/sys/kernel/osrelease") or platform.release()).strip(),
        gpus=_gpus(root, board),
        gpu_driver=_first(
            r"(?:NVIDIA UNIX|Kernel Module).*?\s(\d+\.\d+(?:\.\d+)?)",
            _read(root / "proc/driver/nvidia/version"),
        ),
        jetson_model=board,
        power_mode=_power_mode(root),
        cpu_governor=_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average_1m=_load_average(root),
    )


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
    match = re.match(r"cpu\s+([\d ]+)", _read(root / "proc/stat") or "")
    if match is None:
        return None
    ticks = [int(value) for value in match[1].split()][:8]  # guest time is counted in user time
    return ticks[3] + (ticks[4] if len(ticks) > 4 else 0), sum(ticks)


def _cpu_model(cpuinfo: str) -> str:
    named = _first(r"^model name\s*:\s*(.+)$", cpuinfo)
    if named and not named.startswith("ARM"):
        return named
    parts = zip(
        re.findall(r"^CPU implementer\s*:\s*(\S+)", cpuinfo, re.MULTILINE),
        re.findall(r"^CPU part\s*:\s*(\S+)", cpuinfo, re.MULTILINE),
        strict=False,
    )
    cores = sorted({ARM_CORES.get(part, f"Arm core {part[0]}/{part[1]}") for part in parts})
    return " + ".join(cores) or named or platform.processor() or platform.machine()


def _physical_cores(cpuinfo: str) -> int:
    """Distinct (socket, core) pairs; processors where the file names no cores (Arm)."""
    pairs = set()
    processors = 0
    for entry in re.split(r"\n\s*\n", cpuinfo):
        if not re.search(r"^processor\s*:", entry, re.MULTILINE):
            continue
        processors += 1
        core = _first(r"^core id\s*:\s*(\d+)", entry)
        if core is not None:
            pairs.add((_first(r"^physical id\s*:\s*(\d+)", entry), core))
    return len(pairs) or processors or os.cpu_count() or 1


def _memory_mib(root: Path) -> int | None:
    kib = _first(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"))
    return int(kib) >> 10 if kib else None


def _os_name(root: Path) -> str:
    name = _first(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"))
    return name or platform.system()


def _gpus(root: Path, board: str | None) -> tuple[str, ...]:
    found = []
    for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = _first(r"^Model:\s*(.+)$", _read(information))
        if model:
            found.append(model)
    if not found and board:
        # The integrated GPU of a board is not listed by the driver's folder.
        found.append(f"{board} (integrated)")
    return tuple(found)


def _power_mode(root: Path) -> str | None:
    """nvpmodel's mode with its name on a Jetson, the platform profile elsewhere."""
    mode = _first(r"pmode:\s*0*(\d+)", _read(root / "var/lib/nvpmodel/status"))
    if mode is not None:
        table = _read(root / "etc/nvpmodel.conf")
        name = _first(rf"<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+?)\s*>", table)
        return f"{name} (nvpmodel {mode})" if name else f"nvpmodel {mode}"
    return _line(root / "sys/firmware/acpi/platform_profile")


def _load_average(root: Path) -> float | None:
    text = _first(r"^(\d+\.\d+)", _read(root / "proc/loadavg"))
    return float(text) if text else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _line(path: Path) -> str | None:
    return (_read(path) or "").strip() or None


def _first(pattern: str, text: str | None) -> str | None:
    match = re.search(pattern, text or "", re.MULTILINE)
    return match[1].strip() if match else None
