"""File trees of devices that are not here, and an NVML that is not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.bench.test_probes import plant

I2C = "sys/bus/i2c/drivers"
ORIN_NANO = "NVIDIA Jetson Orin Nano Developer Kit"
AGX_ORIN = "NVIDIA Jetson AGX Orin Developer Kit"
AGX_THOR = "NVIDIA Jetson AGX Thor Developer Kit"


def release(major: int, revision: str) -> dict[str, str]:
    """/etc/nv_tegra_release as Jetson Linux writes it."""
    text = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64\n"
    return {"etc/nv_tegra_release": text}


def rails(folder: str, *labelled: tuple[str, int, int], name: str = "ina3221") -> dict[str, str]:
    """An INA3221: (label, mV, mA) of its channels from the first on."""
    found = {f"{folder}/name": f"{name}\n"}
    for channel, (label, millivolts, milliamperes) in enumerate(labelled, 1):
        found[f"{folder}/in{channel}_label"] = f"{label}\n"
        found[f"{folder}/in{channel}_input"] = f"{millivolts}\n"
        found[f"{folder}/curr{channel}_input"] = f"{milliamperes}\n"
    return found


def orin_nano(root: Path, *, major: int = 36, revision: str = "4.3") -> Path:
    """An Orin Nano: 5 V * 1.2 A = 6 W at VDD_IN. JetPack 5 has the rails under the driver alone."""
    folder = f"{I2C}/ina3221/1-0040/hwmon/hwmon3" if major == 35 else "sys/class/hwmon/hwmon1"
    return plant(
        root,
        {
            "proc/device-tree/model": f"{ORIN_NANO}\0",
            **release(major, revision),
            **rails(
                folder,
                ("VDD_IN", 5000, 1200),
                ("VDD_CPU_GPU_CV", 4990, 300),
                ("VDD_SOC", 4990, 200),
            ),
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "51500\n",
            "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "-256000\n",
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
            "sys/class/hwmon/hwmon0/name": "soctherm_oc\n",
            "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
            "sys/class/hwmon/hwmon0/oc3_event_cnt": "27\n",
            "proc/meminfo": "MemTotal: 7802416 kB\nMemAvailable: 6000000 kB\n",
            "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
            **clocks(729600, 1510400),
        },
    )


def agx_orin(root: Path, *, major: int = 36, revision: str = "3.0") -> Path:
    """An AGX Orin: no rail for all of it; 4 + 2 + 5 W, and memory inside the last one."""
    return plant(
        root,
        {
            "proc/device-tree/model": f"{AGX_ORIN}\0",
            **release(major, revision),
            **rails(
                "sys/class/hwmon/hwmon3",
                ("VDD_GPU_SOC", 20000, 200),
                ("VDD_CPU_CV", 20000, 100),
                ("VIN_SYS_5V0", 5000, 1000),
            ),
            **rails(
                "sys/class/hwmon/hwmon4", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 300), ("NC", 0, 0)
            ),
        },
    )


def agx_thor(root: Path) -> Path:
    """An AGX Thor with JetPack 7: the whole input at an INA238, 23 W in microwatts."""
    return plant(
        root,
        {
            "proc/device-tree/model": f"{AGX_THOR}\0",
            **release(38, "2.0"),
            **rails(
                "sys/class/hwmon/hwmon3",
                ("VDD_GPU", 12000, -30),
                ("VDD_CPU_SOC_MSS", 12000, 500),
                ("VIN_SYS_5V0", 5000, 1200),
            ),
            "sys/class/hwmon/hwmon4/name": "ina238\n",
            "sys/class/hwmon/hwmon4/power1_input": "23000000\n",
        },
    )


def clocks(low: int, high: int, *, cpus: int = 2) -> dict[str, str]:
    """The bounds of the processors' frequencies and of an Orin's GPU, kHz and Hz."""
    found = {}
    for cpu in range(cpus):
        folder = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        found[f"{folder}/scaling_min_freq"] = f"{low}\n"
        found[f"{folder}/scaling_max_freq"] = f"{high}\n"
        found[f"{folder}/scaling_cur_freq"] = f"{high}\n"
    gpu = "sys/class/devfreq/17000000.ga10b"
    return {**found, f"{gpu}/min_freq": f"{low}000\n", f"{gpu}/max_freq": f"{high}000\n"}


def packages(root: Path, *, energy_uj: int, memory_uj: int | None = None) -> Path:
    """RAPL of one socket, with what lies inside the package and what holds it all."""
    base = "sys/class/powercap"
    files = {
        f"{base}/intel-rapl:0/name": "package-0\n",
        f"{base}/intel-rapl:0/energy_uj": f"{energy_uj}\n",
        f"{base}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
        f"{base}/intel-rapl:0:0/name": "core\n",
        f"{base}/intel-rapl:0:0/energy_uj": "1\n",
        f"{base}/intel-rapl:1/name": "psys\n",
        f"{base}/intel-rapl:1/energy_uj": "1\n",
    }
    if memory_uj is not None:
        files |= {
            f"{base}/intel-rapl:0:1/name": "dram\n",
            f"{base}/intel-rapl:0:1/energy_uj": f"{memory_uj}\n",
            f"{base}/intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
        }
    return plant(root, files)


class NVMLError(Exception):
    """What the real package raises."""


class FakeNvml:
    """The functions of pynvml that are used, for one laptop GPU; `without` names are refused."""

    NVMLError = NVMLError

    def __init__(self, *, without: tuple[str, ...] = (), pid: int = 4242) -> None:
        self.without, self.pid = without, pid
        self.millijoules, self.milliwatts = 1_000_000, 12_000
        self.used, self.of_process = 300 * 2**20, 200 * 2**20
        self.reasons = 0x1  # idle

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "without"):

            def refuse(*arguments: Any) -> None:
                raise NVMLError("Not Supported")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:
        return None

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.54.15"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"NVIDIA GeForce RTX 3050"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=self.used, total=4096 * 2**20)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self.millijoules

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self.milliwatts

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=1, usedGpuMemory=None),
            SimpleNamespace(pid=self.pid, usedGpuMemory=self.of_process),
        ]

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons
