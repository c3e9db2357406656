"""The device card: what the numbers were taken on. Reads files, changes no setting.

Everything comes from /proc and /sys (and three files of a Jetson), through a `root` that a test may
point at a tree of its own, and from NVML where its Python package is installed. Jetson boards: the
model from the device tree, L4T and with it JetPack from /etc/nv_tegra_release, the power mode from
nvpmodel's status file (or its query, `nvpmodel -q`), jetson_clocks from the bounds of the
frequencies, which it makes equal; elsewhere the platform profile and the frequency governor say how
fast the processor may go. jetson_stats is not used (AGPL).

>>> probe().cpu_model     # doctest: +SKIP
'AMD Ryzen 7 5800U'
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clp_edge.bench.bandwidth import last_level_cache
from clp_edge.bench.probes.files import first, line, number_or_none, read
from clp_edge.bench.probes.nvml import Nvml, open_nvml
from clp_edge.jetson import jetpack, jetson_model, l4t_release

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
    ("0x41", "0xd83"): "Neoverse V3AE",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}


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
    l4t: str | None = None
    """Jetson Linux: 36.4.3"""
    jetpack: str | None = None
    """the major version that belongs to that: 6"""
    jetson_clocks: bool | None = None
    """whether the frequencies are pinned; None off a Jetson or where it cannot be read"""
    gpu_memory_mib: tuple[int, ...] = ()
    """one a GPU that NVML lists"""

    @property
    def name(self) -> str:
        """The shortest name a reader would recognise."""
        return self.jetson_model or self.cpu_model

    def as_dict(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        lists = {"gpus": list(self.gpus), "gpu_memory_mib": list(self.gpu_memory_mib)}
        return {**asdict(self), **lists, "name": self.name}


def ask_nvpmodel() -> str:
    """What `nvpmodel -q` prints; it only asks. Empty where it cannot be run."""
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=5.0, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def probe(
    root: Path = Path("/"),
    *,
    nvml: Nvml | None = None,
    nvpmodel: Callable[[], str] | None = None,
) -> DeviceCard:
    """Read the card of this device, or of the file tree under `root`.

    `nvml` and `nvpmodel` are this machine's own where `root` is /, and nothing elsewhere.
    """
    if root == Path("/"):
        nvml = nvml or open_nvml()[0]
        nvpmodel = nvpmodel or ask_nvpmodel
    cpuinfo = read(root / "proc/cpuinfo") or ""
    board = jetson_model(root)
    l4t = l4t_release(root)
    gpus = nvml.gpus if nvml is not None and board is None else ()
    return DeviceCard(
        cpu_model=_cpu_model(cpuinfo),
        architecture=platform.machine(),
        cores=_physical_cores(cpuinfo),
        threads=max(len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)), 1),
        memory_mib=_memory_mib(root),
        last_level_cache_bytes=last_level_cache(root),
        os=_os_name(root),
        kernel=(read(root / "proc/sys/kernel/osrelease") or platform.release()).strip(),
        gpus=tuple(gpu.name for gpu in gpus) or _gpus(root, board),
        gpu_driver=first(
            r"(?:NVIDIA UNIX|Kernel Module).*?\s(\d+\.\d+(?:\.\d+)?)",
            read(root / "proc/driver/nvidia/version"),
        )
        or (nvml.driver if nvml is not None and gpus else None),
        jetson_model=board,
        power_mode=_power_mode(root, nvpmodel if board else None),
        cpu_governor=line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        load_average_1m=_load_average(root),
        l4t=l4t,
        jetpack=jetpack(l4t),
        jetson_clocks=_pinned(root) if board else None,
        gpu_memory_mib=tuple(gpu.memory_mib for gpu in gpus if gpu.memory_mib is not None),
    )


def _cpu_model(cpuinfo: str) -> str:
    named = first(r"^model name\s*:\s*(.+)$", cpuinfo)
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
        core = first(r"^core id\s*:\s*(\d+)", entry)
        if core is not None:
            pairs.add((first(r"^physical id\s*:\s*(\d+)", entry), core))
    return len(pairs) or processors or os.cpu_count() or 1


def _memory_mib(root: Path) -> int | None:
    kib = first(r"^MemTotal:\s+(\d+) kB", read(root / "proc/meminfo"))
    return int(kib) >> 10 if kib else None


def _os_name(root: Path) -> str:
    name = first(r'^PRETTY_NAME="?([^"\n]+)', read(root / "etc/os-release"))
    return name or platform.system()


def _gpus(root: Path, board: str | None) -> tuple[str, ...]:
    found = []
    for information in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = first(r"^Model:\s*(.+)$", read(information))
        if model:
            found.append(model)
    if not found and board:
        # The integrated GPU of a board is not listed by the driver's folder.
        found.append(f"{board} (integrated)")
    return tuple(found)


def _power_mode(root: Path, nvpmodel: Callable[[], str] | None) -> str | None:
    """nvpmodel's mode with its name on a Jetson, the platform profile elsewhere."""
    mode = first(r"pmode:\s*0*(\d+)", read(root / "var/lib/nvpmodel/status"))
    if mode is not None:
        table = read(root / "etc/nvpmodel.conf")
        name = first(rf"<\s*POWER_MODEL\s+ID={mode}\s+NAME=(\S+?)\s*>", table)
        return f"{name} (nvpmodel {mode})" if name else f"nvpmodel {mode}"
    if nvpmodel is not None:
        # two lines: "NV Power Mode: 15W" and the number of the mode
        said = nvpmodel()
        name, mode = first(r"NV Power Mode:\s*(\S+)", said), first(r"^\s*(\d+)\s*$", said)
        if name:
            return f"{name} (nvpmodel {mode})" if mode else name
    return line(root / "sys/firmware/acpi/platform_profile")


def _pinned(root: Path) -> bool | None:
    """Whether every frequency, processors and GPU, has equal bounds, as jetson_clocks sets it."""
    bounds = []
    for policy in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        bounds.append((policy / "scaling_min_freq", policy / "scaling_max_freq"))
    for device in gpu_frequencies(root):
        bounds.append((device / "min_freq", device / "max_freq"))
    read_ = [(number_or_none(low), number_or_none(high)) for low, high in bounds]
    known = [(low, high) for low, high in read_ if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def gpu_frequencies(root: Path) -> list[Path]:
    """The devfreq folders of a Jetson's GPU (its chips: gp10b, gv11b, ga10b, gb10b)."""
    named = re.compile(r"gp10b|gv11b|ga10b|gb10b|\.gpu$|^gpu", re.IGNORECASE)
    folders = sorted((root / "sys/class/devfreq").glob("*"))
    return [path for path in folders if named.search(path.name)]


def _load_average(root: Path) -> float | None:
    text = first(r"^(\d+\.\d+)", read(root / "proc/loadavg"))
    return float(text) if text else None
