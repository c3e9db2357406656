"""The power rails of a Jetson: INA3221 (and Thor's INA238) sensors in sysfs, mV and mA.

NVML reports no power on a Jetson (PITFALLS 20). Three layouts are read, the first that has a label:

- hwmon (JetPack 5, 6, 7): `in{1,2,3}_label`, `in*_input` (mV), `curr*_input` (mA), under
  /sys/class/hwmon and under the I2C driver (kernel documentation, hwmon/ina3221);
- INA238 (the carrier board of AGX Thor): `power1_input` in microwatts, the whole input, no label
  (hwmon/ina238);
- iio (JetPack 4 and before): `rail_name_{0,1,2}`, `in_power*_input` (mW) or voltage and current.

What is a total: boards of one sensor chip have a rail for the whole module (`TOTALS`); the AGX
boards have none, and their rails are summed. On AGX Orin VDDQ_VDD2_1V8AO is not added: it is said
to be fed from VIN_SYS_5V0 (users quote NVIDIA's forum, thread 223111; not checked on a board). A
sum of which one rail is missing would look like a better device, so it is no total at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clp_edge.bench.probes.files import ProbeFaultError, line, number
from clp_edge.bench.probes.source import Source

# rail -> what it feeds
TOTALS = {
    "VIN": "the whole board, carrier included",
    "VDD_IN": "the whole module",
    "POM_5V_IN": "the whole module",
}
# rails that make the total of a board without such a rail -> which board
SUMS: dict[tuple[str, ...], str] = {
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"): "the module",
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"): "the module",
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"): "the module",
}
CHANNELS = (1, 2, 3)
NOT_CONNECTED = {"", "NC"}


@dataclass(frozen=True)
class Rail:
    """One rail: volts times amperes of two files, or the power that one file holds."""

    name: str
    files: tuple[Path, ...]
    scale: float
    """watts for one unit of the product"""

    def watts(self) -> float:
        """What the rail carries now. Raises ProbeFaultError."""
        product = 1.0
        for path in self.files:
            product *= number(path)
        return product * self.scale


def rails(root: Path) -> dict[str, Rail]:
    """Every rail that has a label, by its name."""
    found: dict[str, Rail] = {}
    folders = [
        *sorted((root / "sys/class/hwmon").glob("hwmon*")),
        *sorted((root / "sys/bus/i2c/drivers").glob("ina3221*/*/hwmon/hwmon*")),
    ]
    for folder in folders:
        chip = line(folder / "name") or ""
        if chip == "ina238":
            found.setdefault("VIN", Rail("VIN", (folder / "power1_input",), 1e-6))
        if chip not in ("ina3221", "ina3221x", "") or (chip == "" and "ina3221" not in str(folder)):
            continue
        for channel in CHANNELS:
            label = line(folder / f"in{channel}_label") or ""
            if label not in NOT_CONNECTED:
                pair = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
                found.setdefault(label, Rail(label, pair, 1e-6))
    old = [
        *sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio:device*")),
        *sorted((root / "sys/bus/iio/devices").glob("iio:device*")),
    ]
    for folder in old:
        for channel in (0, 1, 2):
            label = line(folder / f"rail_name_{channel}") or ""
            if label in NOT_CONNECTED:
                continue
            power = folder / f"in_power{channel}_input"
            pair = (folder / f"in_voltage{channel}_input", folder / f"in_current{channel}_input")
            rail = Rail(label, (power,), 1e-3) if power.exists() else Rail(label, pair, 1e-6)
            found.setdefault(label, rail)
    return found


def find(root: Path) -> tuple[Source | None, str]:
    """The total power of this Jetson, or why it is not known."""
    found = rails(root)
    if not found:
        return None, "no INA3221 power rails in sysfs"
    total = next((name for name in TOTALS if name in found), None)
    parts = next((names for names in SUMS if set(names) <= set(found)), None)
    names: tuple[str, ...]
    if total is not None:
        names, covers = (total,), TOTALS[total]
    elif parts is not None:
        names, covers = parts, SUMS[parts]
    else:
        return None, f"the rails {', '.join(found)} are no known total of a board"
    used = [found[name] for name in names]

    def watts() -> float:
        return sum(rail.watts() for rail in used)

    try:
        watts()
    except ProbeFaultError as error:
        return None, f"a power rail is not readable ({error})"
    label = f"INA3221 {' + '.join(names)}" if total != "VIN" else "INA238 VIN"
    return Source(label, covers, "watts", watts, note_on(names)), ""


def note_on(names: tuple[str, ...]) -> str:
    """What the reader should know of such a figure."""
    if len(names) > 1:
        return "a sum of rails: the carrier board and losses before the rails are not in it"
    return "" if names == ("VIN",) else "the carrier board is not in it"
