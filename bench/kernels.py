"""What the kernels achieve on the card in front of them, with its copy bandwidth as the ceiling.

Every operation at the shapes of five models beside eager torch, torch.compile and Liger-Kernel,
interleaved in rounds, medians with intervals; then the whole step of the gate search. What cannot
be measured says why, and is never 0. A machine with torch, transformers and triton alone has no
command line; there the same is `json.dumps(bench_kernels(...).as_json())`.

>>> found = bench_kernels(KernelSettings(), gated_final_hidden)             # doctest: +SKIP
>>> found.kernels[0].share_of_copy                                          # doctest: +SKIP
0.91
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from dataclasses import asdict, dataclass

import torch

from clp_edge.bench.gate_step import GatedForward, blocks_that_fit, build, step_parts
from clp_edge.bench.kernel_contenders import SHAPES, TINY, Operation, Shape, operations
from clp_edge.bench.kernel_rounds import (
    Clock,
    Contender,
    Outcome,
    clock_for,
    peak_bytes,
    take_turns,
)
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.kernels import dispatch
from clp_edge.medians import Interval, median_interval
from clp_edge.progress import Progress, silent

COPY_BYTES = 1 << 30
PACKAGES = ("torch", "triton", "transformers", "liger-kernel")


@dataclass(frozen=True)
class KernelSettings:
    """What is measured, and how often."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    rows: int = 4096
    """tokens of a step"""
    rounds: int = 12
    """6 is the least for an interval of 95 %"""
    repeats: int = 3
    """timings of a contender in a round, of which the median counts"""
    kernels: bool = True
    step: bool = True
    blocks: int | None = None
    """of the step's model; None: as many as memory allows"""
    seed: int = 0
    cpu: bool = False
    """torch's forms at a tiny shape on the processor: a smoke test, and no figure"""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        unknown = [name for name in self.shapes if name not in SHAPES]
        if unknown:
            raise UsageError(f"no shape {unknown[0]!r}", f"known: {', '.join(SHAPES)}")
        if min(self.rows, self.rounds, self.repeats, self.blocks or 1) < 1:
            raise UsageError("rows, rounds, repeats and blocks are at least 1", "give more")


@dataclass(frozen=True)
class Timing:
    """One contender's result. Without samples it was not measured, and `reason` says why."""

    contender: str
    samples_ms: tuple[float, ...]
    """of every round"""
    interval: Interval | None
    """ms"""
    bytes: int | None = None
    """what it must move"""
    gb_per_s: float | None = None
    """10^9 bytes, of the median"""
    share_of_copy: float | None = None
    """of the card's measured copy bandwidth"""
    peak_bytes: int | None = None
    """above what was held before; whole steps on CUDA alone"""
    reason: str = ""


@dataclass(frozen=True)
class Measured:
    """One operation, or one part of a step, at one shape."""

    shape: str
    name: str
    direction: str
    rows: int
    width: int
    timings: tuple[Timing, ...]
    blocks: int | None = None
    """of the step's model"""

    def timing(self, contender: str) -> Timing:
        """That contender's timing. Raises KeyError where there is none."""
        found = {timing.contender: timing for timing in self.timings}
        return found[contender]

    def speedup(self, over: str = "eager") -> float | None:
        """The median of `over` to that of ours; None where one was not measured."""
        ours, other = self.timing("ours").interval, self.timing(over).interval
        return None if ours is None or other is None else other.median / ours.median


@dataclass(frozen=True)
class KernelBench:
    """All results, with what they depend on."""

    device: str
    kernels_choice: str
    """which form ran as ours, and why"""
    versions: dict[str, str]
    date: str
    settings: KernelSettings
    copy: Timing
    """a copy of `COPY_BYTES`: the ceiling"""
    kernels: tuple[Measured, ...]
    steps: tuple[Measured, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values, samples included."""
        return asdict(self)


def device_of(settings: KernelSettings) -> torch.device:
    """Where to measure. Raises ClpEdgeError where there is no CUDA device and none is forgone."""
    if settings.cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ClpEdgeError(
            "no CUDA device here, so there is nothing to measure",
            "run it on a machine with a GPU, or try the code with --cpu",
        )
    return torch.device("cuda", torch.cuda.current_device())


def bench_kernels(
    settings: KernelSettings, gated_forward: GatedForward, *, progress: Progress = silent
) -> KernelBench:
    """Measure all that the settings name.

    Args: gated_forward, `search.gated.gated_final_hidden`. Raises ClpEdgeError without a CUDA
        device, and where a kernel of ours fails or gives other values than torch.
    """
    device = device_of(settings)
    clock = clock_for(device)
    shapes = [TINY] if settings.cpu else [SHAPES[name] for name in settings.shapes]
    rows = min(settings.rows, 32) if settings.cpu else settings.rows
    total = len(shapes) * (settings.kernels + settings.step)
    copy = _copy(device, clock, settings)
    kernels: list[Measured] = []
    steps: list[Measured] = []
    notes = list(_notes(settings))
    for shape in shapes:
        if settings.kernels:
            progress(len(kernels) + len(steps), max(1, total), f"kernels of {shape.name}")
            for operation in operations(shape, rows=rows, device=device):
                kernels.append(_kernel(shape, operation, copy, clock, settings))
    for done, shape in enumerate(shapes if settings.step else []):
        progress(len(shapes) * settings.kernels + done, max(1, total), f"step of {shape.name}")
        found, note = _step(shape, rows, device, clock, settings, gated_forward)
        steps += found
        notes += note
    progress(max(1, total), max(1, total), "done")
    return KernelBench(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        kernels_choice=": ".join(dispatch.choose(device)),
        versions=_versions(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        settings=settings,
        copy=copy,
        kernels=tuple(kernels),
        steps=tuple(steps),
        notes=tuple(notes),
    )


def _copy(device: torch.device, clock: Clock, settings: KernelSettings) -> Timing:
    """Read and write of one large buffer: the ceiling of everything bound by memory."""
    size = COPY_BYTES if device.type == "cuda" else 1 << 20
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    outcomes = take_turns(
        {"copy": Contender(lambda _: target.copy_(source), ours=True)},
        clock,
        rounds=settings.rounds,
        repeats=settings.repeats,
        seed=settings.seed,
    )
    return _timing("copy", outcomes["copy"], 2 * size, None)


def _kernel(
    shape: Shape, operation: Operation, copy: Timing, clock: Clock, settings: KernelSettings
) -> Measured:
    outcomes = take_turns(
        operation.contenders,
        clock,
        rounds=settings.rounds,
        repeats=settings.repeats,
        seed=settings.seed,
    )
    timings = [
        _timing(name, outcome, operation.contenders[name].bytes or operation.bytes, copy.gb_per_s)
        for name, outcome in outcomes.items()
    ]
    timings += [Timing(name, (), None, reason=why) for name, why in operation.missing.items()]
    return Measured(
        shape.name,
        operation.name,
        operation.direction,
        operation.rows,
        operation.width,
        tuple(timings),
    )


def _step(
    shape: Shape,
    tokens: int,
    device: torch.device,
    clock: Clock,
    settings: KernelSettings,
    gated_forward: GatedForward,
) -> tuple[list[Measured], list[str]]:
    torch.compiler.reset()
    blocks = min(settings.blocks or shape.blocks, shape.blocks)
    notes = []
    if device.type == "cuda":
        torch.cuda.empty_cache()
        blocks = min(blocks, blocks_that_fit(shape, tokens, torch.cuda.mem_get_info(device)[0]))
    if blocks < shape.blocks:
        notes.append(f"the step of {shape.name} is of {blocks} of its {shape.blocks} blocks")
    try:
        built = build(shape, tokens=tokens, blocks=blocks, device=device)
        parts = step_parts(built, gated_forward)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return [], [f"the step of {shape.name} is not measured: the GPU has too little memory"]
    found = []
    for part, contenders in parts.items():
        outcomes = take_turns(
            contenders, clock, rounds=settings.rounds, repeats=1, seed=settings.seed
        )
        timings = []
        for name, outcome in outcomes.items():
            peak = None
            if outcome.samples_ms:
                one = contenders[name]
                peak = peak_bytes(lambda one=one: one.run(one.prepare()), device)  # type: ignore[misc]
            timings.append(_timing(name, outcome, None, None, peak))
        found.append(
            Measured(shape.name, part, "", tokens, shape.hidden, tuple(timings), blocks=blocks)
        )
    return found, notes


def _timing(
    name: str, outcome: Outcome, moved: int | None, ceiling: float | None, peak: int | None = None
) -> Timing:
    if not outcome.samples_ms:
        return Timing(name, (), None, moved, reason=outcome.reason)
    interval = median_interval(outcome.samples_ms)
    speed = None if moved is None else moved / interval.median / 1e6
    share = speed / ceiling if speed is not None and ceiling else None
    return Timing(name, outcome.samples_ms, interval, moved, speed, share, peak)


def _notes(settings: KernelSettings) -> tuple[str, ...]:
    notes = [
        "Liger's sum and norm has no gate (g = 1) and forms the gain's gradient too",
        "an operation that fits the card's cache may pass the copy, which does not",
    ]
    if settings.cpu:
        notes.append("on the processor at a tiny shape: a smoke test, and no figure")
    return tuple(notes)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
