"""One artifact on its way through the bench: its session, its samples, and why it stopped.

A failure belongs to the row it happened to: the row keeps the reason, and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from clp_edge.bench.probes.suite import Probes
from clp_edge.bench.settings import BenchItem, BenchSettings, context_of
from clp_edge.errors import ClpEdgeError
from clp_edge.progress import Progress
from clp_edge.records import TestRecord
from clp_edge.runtimes import Timing

METRICS = ("prefill_tps", "decode_tps", "ttft_ms")


Opener = Callable[..., Any]
"""`clp_edge.runtimes.open_artifact`, or a stand-in with the same call."""


@dataclass
class Samples:
    """What one artifact's rounds of one test gave: a value a round, in the same order."""

    timings: list[Timing] = field(default_factory=list)
    warmups: list[float] = field(default_factory=list)
    """decode speeds of the warm-up rounds"""

    def of(self, name: str) -> tuple[float, ...]:
        """The values of one metric."""
        return tuple(float(getattr(timing, name)) for timing in self.timings)


@dataclass
class Row:
    """One artifact: its open session and what became of it."""

    item: BenchItem
    session: Any = None
    info: Any = None
    reason: str | None = None
    pilots: list[Timing] = field(default_factory=list)
    samples: dict[TestRecord, Samples] = field(default_factory=dict)
    peak_rss_mib: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self.reason is None

    def of(self, test: TestRecord) -> Samples:
        """Its samples of a test."""
        return self.samples.setdefault(test, Samples())

    def attempt(self, act: Callable[[], object]) -> None:
        """Do it unless the row has failed; a failure is the row's own and is kept as its reason."""
        if not self.alive:
            return
        try:
            act()
        except (ClpEdgeError, OSError, EOFError) as error:
            self.reason = f"{error}" or type(error).__name__

    def timed(self, test: TestRecord, seed: int) -> Timing:
        """One timed run."""
        timing: Timing = self.session.time_once(
            prompt=test.prompt, generate=test.generate, depth=test.depth, seed=seed
        )
        return timing

    def note_memory(self) -> None:
        """Ask for the peak of the process, which is still there."""
        self.peak_rss_mib = float(self.session.peak_rss_mib())


class Steps:
    """Counts timed runs, so that progress moves by equal steps of work."""

    def __init__(self, each_round: int, settings: BenchSettings, progress: Progress) -> None:
        self.done = 0
        self.total = each_round * (settings.warmup_rounds + settings.rounds)
        self.progress = progress

    def say(self, note: str) -> None:
        """What is done now."""
        self.progress(self.done, max(self.total, self.done), note)

    def step(self) -> None:
        """One timed run is done."""
        self.done += 1


def open_rows(
    rows: Sequence[Row],
    settings: BenchSettings,
    opener: Opener,
    stack: ExitStack,
    probes: Probes,
    *,
    threads: int,
    cpus: tuple[int, ...] | None,
) -> None:
    """Open every artifact; each session is closed with the stack.

    They are open beside each other, so each takes its equal share of the GPU's memory: the first of
    two half of what is free, the second all of the other half.
    """
    for index, row in enumerate(rows):
        how: dict[str, Any] = {
            "threads": threads,
            "context": context_of(settings.tests),
            "gpu_layers": settings.gpu_layers,
            "gpu_share": 1.0 / (len(rows) - index),
            "device": settings.device,
            "cpus": cpus,
        }

        def act(row: Row = row, how: dict[str, Any] = how) -> None:
            with probes.opening(row.item.name, row.item.path):
                row.session = opener(row.item.path, **how)
            stack.callback(_close, row.session)
            row.info = row.session.info

        row.attempt(act)


def _close(session: Any) -> None:
    try:
        session.close()
    except (ClpEdgeError, OSError, EOFError):
        return  # it is gone already, which is what was wanted
