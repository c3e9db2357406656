"""What is measured and how: the artifacts, the tests, the rounds, the time it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from clp_edge.errors import UsageError
from clp_edge.records import TestRecord, Variant
from clp_edge.runtimes import GpuLayers

# A budget does not cut the rounds below this: fewer cannot attain 95 % (metrics.median_interval).
MINIMUM_ROUNDS = 6


@dataclass(frozen=True)
class BenchItem:
    """One artifact to measure: file or folder, what it is, and the target it was written for."""

    name: str
    path: Path
    variant: Variant
    target: str


@dataclass(frozen=True)
class BenchSettings:
    """How to measure; `threads` None means the physical cores this process may use.

    `prompt`, `generate` and `depth` (tokens) are one number or several: each combination is a test
    of its own, in llama-bench's words pp512, tg128 @ d512. `time_budget_s` (None: as long as it
    takes) bounds warm-up and rounds together. Where the least of both does not fit, the prompts and
    the answers are shortened, and a warning says so. `delay_s` is slept before each measurement and
    counts in the budget. `cpus` None pins every child to one processor of each core, the fastest
    first (`bench.affinity`).
    """

    prompt: int | Sequence[int] = 512
    generate: int | Sequence[int] = 128
    depth: int | Sequence[int] = 0
    rounds: int = MINIMUM_ROUNDS
    warmup_rounds: int = 1
    threads: int | None = None
    seed: int = 0
    time_budget_s: float | None = 180.0
    delay_s: float = 0.0
    cpus: tuple[int, ...] | None = None
    gpu_layers: GpuLayers = "auto"
    """for llama.cpp: how many layers the GPU computes"""
    device: str = "auto"
    """for torch: auto, cpu or cuda"""

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("generate", 1), ("depth", 0), ("rounds", 1)):
            values = _several(getattr(self, name))
            if not values:
                raise UsageError(f"bench {name} is an empty list", "give at least one number")
            if min(values) < least:
                raise UsageError(f"bench {name} must be at least {least}")
        if self.warmup_rounds < 1:
            raise UsageError("bench needs at least one warm-up round")
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads must be at least 1")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise UsageError("the bench's time budget must be more than 0 s")
        if not 0 <= self.delay_s < float("inf"):
            raise UsageError("--delay must be 0 s or more")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"unknown device {self.device!r}", "take auto, cpu or cuda")

    @property
    def tests(self) -> tuple[TestRecord, ...]:
        """Every combination, the depths outermost; what is given twice counts once."""
        every = product(_several(self.depth), _several(self.prompt), _several(self.generate))
        return tuple(dict.fromkeys(TestRecord(p, n, d) for d, p, n in every))


def _several(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def context_of(tests: Sequence[TestRecord]) -> int:
    """Tokens that an open context must hold for all of these."""
    return max(test.depth + max(test.prompt, test.generate) for test in tests) + 1
