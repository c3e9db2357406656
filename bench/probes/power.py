"""Which source tells the energy of a run, and why none does where there is none.

- Jetson: the rails (`rails`), for runs on the processor and on the GPU alike.
- Elsewhere, a run on an NVIDIA GPU: NVML's energy counter, or its power where the GPU has none;
  RAPL is added where it may be read, since the processor works along.
- Elsewhere, a run on the processor: RAPL.

All of them count what everyone on the device draws. So a row's figure is meant for a machine with
nothing else to do, and the net figure takes the idle power, measured before, off it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clp_edge.bench.probes import rails, rapl
from clp_edge.bench.probes.files import ProbeFaultError
from clp_edge.bench.probes.nvml import Gpu, Nvml
from clp_edge.bench.probes.source import Source
from clp_edge.jetson import jetson_model

# Words in a runtime's backend that mean an NVIDIA GPU.
ON_NVIDIA = ("cuda", "tensorrt", "vulkan")
PROCESSOR_WORDS = ("cpu", "blas", "amx")


@dataclass(frozen=True)
class PowerSources:
    """What can be read here: for runs on the processor and on the GPU; empty with a reason."""

    processor: tuple[Source, ...]
    processor_reason: str
    gpu: tuple[Source, ...]
    gpu_reason: str

    @property
    def every(self) -> tuple[Source, ...]:
        """Each source once."""
        return tuple({id(source): source for source in (*self.processor, *self.gpu)}.values())

    def of(self, backend: str) -> tuple[tuple[Source, ...], str]:
        """The sources whose sum is the energy of a run on that backend, or () and why."""
        words = backend.lower()
        if on_nvidia(backend):
            return self.gpu, self.gpu_reason
        if any(words.startswith(word) for word in PROCESSOR_WORDS):
            return self.processor, self.processor_reason
        if self.gpu and self.gpu == self.processor:
            return self.processor, ""  # a rail of the whole module counts every backend
        return (), f"no source is known for the backend {backend}"

    def describe(self, *, gpus: bool) -> tuple[bool, str]:
        """Whether every kind of run has a source, and which or why not; `gpus`: there are some."""
        sides = [("processor", self.processor, self.processor_reason)]
        if gpus and self.gpu != self.processor:
            sides.append(("GPU", self.gpu, self.gpu_reason))
        said = [
            f"{side}: {' + '.join(source.name for source in sources)} ({covers(sources)})"
            if sources
            else f"{side}: not measured, {reason}"
            for side, sources, reason in sides
        ]
        return all(sources for _, sources, _ in sides), "; ".join(said)


def on_nvidia(backend: str) -> bool:
    """Whether a runtime's backend is an NVIDIA GPU, as far as its name tells."""
    return any(word in backend.lower() for word in ON_NVIDIA)


def find_sources(root: Path, nvml: Nvml | None, nvml_reason: str) -> PowerSources:
    """What tells power or energy on this device."""
    if jetson_model(root) is not None:
        rail, why = rails.find(root)
        found = () if rail is None else (rail,)
        return PowerSources(found, why, found, why)
    package, why = rapl.find(root)
    processor = () if package is None else (package,)
    if nvml is None:
        return PowerSources(processor, why, (), nvml_reason)
    boards, reason = [], ""
    for gpu in nvml.gpus:
        board, said = of_gpu(nvml, gpu)
        if board is None:
            reason = said
        else:
            boards.append(board)
    if reason:
        return PowerSources(processor, why, (), reason)
    return PowerSources(processor, why, (*boards, *processor), "")


def of_gpu(nvml: Nvml, gpu: Gpu) -> tuple[Source | None, str]:
    """A GPU's energy counter where it has one, else its power; or why neither can be read."""
    covers = f"the board of GPU {gpu.index} ({gpu.name})"
    try:
        nvml.energy_j(gpu)
    except ProbeFaultError:
        pass
    else:
        return Source("NVML energy counter", covers, "joules", partial(nvml.energy_j, gpu)), ""
    try:
        nvml.watts(gpu)
    except ProbeFaultError as error:
        return None, f"GPU {gpu.index} tells no power ({error})"
    note = "NVML's power, sampled; some GPUs give the mean of the last second"
    return Source("NVML power", covers, "watts", partial(nvml.watts, gpu), note), ""


def covers(sources: tuple[Source, ...]) -> str:
    """What the sources count, in one line."""
    return " and ".join(source.covers for source in sources)
