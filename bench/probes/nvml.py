"""NVIDIA's management library, through the optional package nvidia-ml-py (`import pynvml`).

Only questions are asked. What one GPU or driver does not answer is None or a `ProbeFaultError`
with the driver's own words. Names and units (mJ, mW, bytes, degrees C) are those of
docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clp_edge.bench.probes.files import ProbeFaultError

INSTALL = "pip install nvidia-ml-py"
# Of nvmlClocksEventReasons those that mean "slower than asked for": idle, an application's own
# clocks, synchronised boards and the display's clocks are left out.
THROTTLED = {
    0x04: "power limit",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
_MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML lists it."""

    index: int
    name: str
    memory_mib: int | None
    handle: Any


class Nvml:
    """An initialised NVML. Every method raises ProbeFaultError where the driver has no answer."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.driver: str | None = None
        self.gpus: tuple[Gpu, ...] = ()
        self._ask("nvmlInit")
        self.driver = _text(self._ask("nvmlSystemGetDriverVersion"))
        self.gpus = tuple(self._gpu(index) for index in range(self._ask("nvmlDeviceGetCount")))

    def energy_j(self, gpu: Gpu) -> float:
        """Joules since the driver was loaded (Volta and later)."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", gpu.handle) / 1e3

    def watts(self, gpu: Gpu) -> float:
        """What the board draws; from Ampere on an average over the last second."""
        return self._ask("nvmlDeviceGetPowerUsage", gpu.handle) / 1e3

    def used_mib(self, gpu: Gpu) -> float:
        """Memory taken on the GPU by everyone."""
        return self._ask("nvmlDeviceGetMemoryInfo", gpu.handle).used / _MIB

    def used_by_mib(self, gpu: Gpu, pid: int) -> float | None:
        """Memory that one process takes; None where it is not listed (as in a container)."""
        for process in self._ask("nvmlDeviceGetComputeRunningProcesses", gpu.handle):
            if process.pid == pid and process.usedGpuMemory is not None:
                return process.usedGpuMemory / _MIB
        return None

    def celsius(self, gpu: Gpu) -> float:
        """The temperature of the chip."""
        return float(self._ask("nvmlDeviceGetTemperature", gpu.handle, 0))

    def throttled(self, gpu: Gpu) -> tuple[str, ...]:
        """Why the clocks are below what was asked for, now; empty where they are not."""
        names = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
        name = next((each for each in names if hasattr(self._module, each)), names[0])
        bits = self._ask(name, gpu.handle)
        return tuple(reason for bit, reason in THROTTLED.items() if bits & bit)

    def _gpu(self, index: int) -> Gpu:
        handle = self._ask("nvmlDeviceGetHandleByIndex", index)
        try:
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle).total // _MIB
        except ProbeFaultError:
            memory = None  # a board that shares its memory with the processor
        return Gpu(index, _text(self._ask("nvmlDeviceGetName", handle)), memory, handle)

    def _ask(self, name: str, *arguments: Any) -> Any:
        question: Callable[..., Any] | None = getattr(self._module, name, None)
        if question is None:
            raise ProbeFaultError(f"this version of nvidia-ml-py has no {name}")
        try:
            return question(*arguments)
        except self._module.NVMLError as error:
            raise ProbeFaultError(f"{name}: {error}") from None


def open_nvml(module: Any = None) -> tuple[Nvml | None, str]:
    """NVML, or None and why there is none. `module` stands for pynvml (tests give their own)."""
    if module is None:
        try:
            module = importlib.import_module("pynvml")
        except ImportError:
            return None, f"nvidia-ml-py is not installed ({INSTALL})"
    try:
        opened = Nvml(module)
    except ProbeFaultError as error:
        return None, f"NVML does not answer ({error})"
    return (opened, "") if opened.gpus else (None, "NVML lists no GPU")


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
