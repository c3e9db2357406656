"""Time things in turns on one device: rounds, a cold cache, and what each may not be timed for.

A contender is prepared outside the clock and run inside it. In every round each is timed a few
times, in an order that changes from round to round, so that a clock that falls with heat falls for
all of them; a round's median is one sample. Before each timing on a GPU a buffer larger than its
cache is written: the inputs come from memory, as they do inside a model, and the processor gets
ahead of the GPU, so that launches are not what is timed.

>>> take_turns({"copy": Contender(lambda: b.copy_(a))}, clock, rounds=8)    # doctest: +SKIP
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from clp_edge.errors import ClpEdgeError

FLUSH_BYTES = 1 << 30
AGREEMENT = 0.03
"""How far a contender's values may be from the reference's, relative to their norm: bf16 noise."""


@dataclass(frozen=True)
class Contender:
    """One way to do a thing."""

    run: Callable[[Any], Any]
    """what is timed; gets what `prepare` gave"""
    prepare: Callable[[], Any] = lambda: None
    reference: Callable[[], Sequence[Tensor]] | None = None
    """what the values must agree with; they are not compared where there is none"""
    bytes: int | None = None
    """what it must move, where that is not what the operation must"""
    ours: bool = False
    """whether its failure is ours, and is raised"""


@dataclass(frozen=True)
class Outcome:
    """Milliseconds of every round, or why there are none."""

    samples_ms: tuple[float, ...] = ()
    reason: str = ""


class Clock(Protocol):
    """Times one run."""

    def __call__(self, contender: Contender) -> float:
        """Milliseconds of one run."""
        ...


class CudaClock:
    """By events on the current stream, after a write that empties the cache."""

    def __init__(self, device: torch.device) -> None:
        free = torch.cuda.mem_get_info(device)[0]
        size = min(FLUSH_BYTES, free // 16)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, contender: Contender) -> float:
        prepared = contender.prepare()
        self._flush.zero_()
        self._start.record()
        contender.run(prepared)
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))


class ProcessorClock:
    """By the processor's clock; the cache stays as it is."""

    def __call__(self, contender: Contender) -> float:
        prepared = contender.prepare()
        began = time.perf_counter()
        contender.run(prepared)
        return 1e3 * (time.perf_counter() - began)


def clock_for(device: torch.device) -> Clock:
    """The clock of this device."""
    return CudaClock(device) if device.type == "cuda" else ProcessorClock()


def take_turns(
    contenders: Mapping[str, Contender],
    clock: Clock,
    *,
    rounds: int,
    repeats: int = 3,
    seed: int = 0,
) -> dict[str, Outcome]:
    """Every contender's samples, by name. A peer that fails or disagrees is named with its reason.

    Raises what a contender of ours raises, running out of the GPU's memory excepted.
    """
    outcomes: dict[str, Outcome] = {}
    running: dict[str, Contender] = {}
    for name, contender in contenders.items():
        reason = _trial(contender, clock)
        if reason:
            outcomes[name] = Outcome(reason=reason)
        else:
            running[name] = contender
    samples: dict[str, list[float]] = {name: [] for name in running}
    order = list(running)
    shuffle = random.Random(seed)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            times = [clock(running[name]) for _ in range(repeats)]
            samples[name].append(statistics.median(times))
    outcomes |= {name: Outcome(tuple(taken)) for name, taken in samples.items()}
    return {name: outcomes[name] for name in contenders}


def _trial(contender: Contender, clock: Clock) -> str:
    """Run once, compare, warm up; the reason why it is not timed, empty where it is."""
    try:
        values = contender.run(contender.prepare())
        if contender.reference is not None:
            off = disagreement(values, contender.reference())
            if not off <= AGREEMENT:
                problem = f"its values are {off:.2g} off the reference"
                if contender.ours:
                    raise ClpEdgeError(f"a kernel of ours is wrong here: {problem}", "report it")
                return problem
        del values
        for _ in range(2):
            clock(contender)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "the GPU has too little memory for it"
    except Exception as error:
        # A peer of another version, a compiler that is not there: its reason is its result.
        if contender.ours:
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def disagreement(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest distance of a tensor from its reference, relative to the reference's norm."""
    worst = 0.0
    for got, wanted in zip(values, reference, strict=True):
        exact = wanted.detach().double()
        error = (got.detach().double() - exact).norm()
        worst = max(worst, float(error / exact.norm().clamp_min(1e-30)))
        if error.isnan():
            return float("inf")
    return worst


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """The most that torch held above what it held before; None off CUDA."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before
