"""What a user cuts a model for, bytes, decode, first token, memory, energy, and who serves it.

A file is held against another in one aim and in quality. Timings are held round by round (both ran
in the same rounds), so a gain has an interval; bytes and memory are exact. Quality is the KL to the
dense model. `front` is Pareto's: a file is on it unless another is no worse in both and better in
one.

>>> front([(90.0, 0.3), (100.0, 0.1), (95.0, 0.4)])
(0, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clp_edge.bench.statistics import paired_speedup
from clp_edge.records import (
    ArtifactRecord,
    BenchRecord,
    ContextMemoryRecord,
    QualityRecord,
    Report,
    RunRecord,
)
from clp_edge.report import format as write

FEWEST_ROUNDS = 2
"""Of one round nothing can be said of a ratio."""


@dataclass(frozen=True)
class Measured:
    """One file with all that is known of it."""

    artifact: ArtifactRecord
    quality: QualityRecord | None
    run: RunRecord | None
    memory: ContextMemoryRecord | None

    @property
    def name(self) -> str:
        """The artifact's."""
        return self.artifact.name

    @property
    def kl(self) -> float | None:
        """To the dense model, nats."""
        return None if self.quality is None else self.quality.kl


@dataclass(frozen=True)
class Gain:
    """By how much one file beats another in an aim; above 1 is better, whatever the unit."""

    median: float
    low: float
    high: float
    confidence: float
    """that the interval attains; 1 where nothing is random"""
    n: int
    """rounds; 0 where the ratio is exact"""

    @property
    def sure(self) -> bool:
        """Whether it is better beyond the noise."""
        return self.low > 1.0 and self.confidence >= write.USUAL_CONFIDENCE

    def words(self) -> str:
        """As in "1.16x, 1.12 to 1.20" or "1.19x"; the confidence only where it is not 95 %."""
        if self.n == 0:
            return write.ratio(self.median)
        weak = self.confidence < write.USUAL_CONFIDENCE
        sure = f", {write.sureness(self.confidence, self.n)}" if weak else ""
        return f"{write.ratio(self.median)}, {self.low:.2f} to {self.high:.2f}{sure}"


@dataclass(frozen=True)
class Aim:
    """What is to be small or large."""

    name: str
    words: str
    value: Callable[[Measured], float | None]
    """the figure, in the aim's unit"""
    show: Callable[[float | None], str]
    rounds: Callable[[RunRecord], Sequence[float]] | None = None
    """its samples; None where it is exact"""
    larger: bool = False
    """whether larger is better"""

    def cost(self, one: Measured) -> float | None:
        """The figure, so turned that less is better."""
        value = self.value(one)
        if value is None or not math.isfinite(value):
            return None
        return -value if self.larger else value

    def gain(self, before: Measured, after: Measured) -> Gain | None:
        """`after` over `before`; None where either was not measured, or in fewer than 2 rounds."""
        if self.rounds is None:
            first, second = self.value(before), self.value(after)
            if not first or not second:
                return None
            ratio = first / second
            return Gain(ratio, ratio, ratio, 1.0, 0)
        if before.run is None or after.run is None or before.run.test != after.run.test:
            return None
        samples = [list(self.rounds(one)) for one in (before.run, after.run)]
        if len(samples[0]) != len(samples[1]) or len(samples[0]) < FEWEST_ROUNDS:
            return None
        try:
            found = paired_speedup(*samples, lower_is_better=not self.larger).ratio
        except ValueError:  # a timing that is none
            return None
        return Gain(found.median, found.low, found.high, found.confidence, found.n)


def _median(metric: str) -> Callable[[Measured], float | None]:
    def value(one: Measured) -> float | None:
        found = one.run.summary.get(metric) if one.run is not None else None
        return found.median if found is not None else None

    return value


def _tps(value: float | None) -> str:
    return write.fixed(value, 1, "tok/s")


AIMS: dict[str, Aim] = {
    aim.name: aim
    for aim in (
        Aim("bytes", "bytes", lambda one: float(one.artifact.bytes), write.megabytes),
        Aim("decode", "decode", _median("decode_tps"), _tps, lambda run: run.decode_tps, True),
        Aim(
            "ttft",
            "time to first token",
            _median("ttft_ms"),
            lambda value: write.fixed(value, 1, "ms"),
            lambda run: run.ttft_ms,
        ),
        Aim(
            "memory",
            "memory at context",
            lambda one: float(one.memory.total) if one.memory is not None else None,
            write.megabytes,
        ),
        Aim(
            "energy",
            "energy",
            lambda one: one.run.j_per_token if one.run is not None else None,
            lambda value: write.fixed(value, 3, "J per token"),
            lambda run: run.energy.j_per_token if run.energy is not None else (),
        ),
    )
}
PREFILL = Aim("prefill", "prefill", _median("prefill_tps"), _tps, lambda run: run.prefill_tps, True)
AXES = (AIMS["bytes"], AIMS["decode"], PREFILL, AIMS["ttft"], AIMS["memory"])


def measured_files(
    artifacts: Sequence[ArtifactRecord],
    quality: Mapping[str, QualityRecord],
    bench: BenchRecord | None,
    memory: Mapping[str, ContextMemoryRecord],
) -> list[Measured]:
    """Every file that passed its proof, with what is known of it; the first test of several."""
    timed = bench.runs if bench is not None else ()
    runs = {run.artifact: run for run in reversed(timed) if run.status == "ok"}
    return [
        Measured(one, quality.get(one.name), runs.get(one.name), memory.get(one.name))
        for one in artifacts
        if one.verified
    ]


def all_files(report: Report) -> list[Measured]:
    """Those of the report, and those that were written for the comparison alone."""
    beside = report.frontier.artifacts if report.frontier is not None else ()
    return measured_files(
        (*report.artifacts, *beside), report.quality, report.bench, report.context_memory
    )


def front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points (cost, loss) that no other beats, both the less the better.

    Equal points are all on it; one that is not finite never is.
    """
    whole = [i for i, point in enumerate(points) if all(map(math.isfinite, point))]
    found: list[int] = []
    least = math.inf
    ordered = sorted(whole, key=lambda i: points[i])
    for place, i in enumerate(ordered):
        same = (
            place > 0
            and points[ordered[place - 1]] == points[i]
            and found[-1:] == [ordered[place - 1]]
        )
        if points[i][1] < least or same:
            found.append(i)
            least = min(least, points[i][1])
    return tuple(sorted(found))


def fronts(files: Sequence[Measured]) -> dict[str, tuple[str, ...]]:
    """Axis -> names of the files on the Pareto front of it and KL; only axes that were measured."""
    found = {}
    for aim in AXES:
        known = [
            (one.name, cost, one.kl)
            for one in files
            if (cost := aim.cost(one)) is not None and one.kl is not None
        ]
        if known:
            best = front([(cost, kl) for _, cost, kl in known])
            found[aim.name] = tuple(known[i][0] for i in best)
    return found


Word = Literal["served", "rival", "matched", "not better", "not measured"]


@dataclass(frozen=True)
class Judged:
    """What a file of the cut model is worth in one aim."""

    aim: Aim
    word: Word
    gain: Gain | None
    """over the dense file of the same type"""
    rival: Measured | None
    """of the dense files no worse in quality the one of least KL that is surely better here; where
    none is (matched), the strongest here of those that this file does not surely beat"""
    rival_gain: Gain | None
    """of the rival over this file"""
    compared: int
    """dense files of other types that could be the rival"""


def judge(aim: Aim, cut: Measured, files: Sequence[Measured]) -> Judged:
    """Hold a file of the cut model against every dense one in an aim."""
    dense = [one for one in files if one.artifact.variant == "dense"]
    same = next((one for one in dense if one.artifact.target == cut.artifact.target), None)
    gain = aim.gain(same, cut) if same is not None else None
    others = [one for one in dense if one is not same]
    better: list[tuple[float, Measured, Gain]] = []
    level: list[tuple[float, Measured, Gain]] = []
    compared = 0
    for one in dense:
        over, under = aim.gain(cut, one), aim.gain(one, cut)
        if over is None or under is None or one.kl is None or cut.kl is None:
            continue
        compared += one in others
        if one.kl <= cut.kl and over.sure:
            better.append((one.kl, one, over))
        elif one.kl <= cut.kl and not under.sure and one is not same:
            level.append((one.kl, one, over))
    if better:
        _, rival, over = min(better, key=lambda found: found[0])
        return Judged(aim, "rival", gain, rival, over, compared)
    if gain is None:
        return Judged(aim, "not measured", None, None, None, compared)
    if gain.sure and level:
        _, rival, over = max(level, key=lambda found: found[2].median)
        return Judged(aim, "matched", gain, rival, over, compared)
    return Judged(aim, "served" if gain.sure else "not better", gain, None, None, compared)


def judged(cut: Measured, files: Sequence[Measured]) -> list[Judged]:
    """Every aim, in their order."""
    return [judge(aim, cut, files) for aim in AIMS.values()]


def words_of(aim: Aim, cut: Measured) -> str:
    """The aim's name, with the context that memory is at."""
    if aim.name == "memory" and cut.memory is not None:
        return f"memory at {cut.memory.context:,} tokens"
    return aim.words


def sentence(cut: Measured, files: Sequence[Measured]) -> str:
    """Which aims the cut serves, which a dense file serves better, what was not measured or not
    compared; without a full stop."""
    found = judged(cut, files)
    parts = []
    served = [
        f"{words_of(one.aim, cut)} ({one.gain.words()})"
        for one in found
        if one.word == "served" and one.gain is not None
    ]
    others = max((one.compared for one in found), default=0)
    against = (
        f"held against {others} other dense file{'s' * (others != 1)}"
        if others
        else "against the dense file of the same type alone"
    )
    parts.append(f"{against}, {cut.name} serves {', '.join(served) or 'none of the aims measured'}")
    for one in found:
        if one.word == "rival" and one.rival is not None and one.rival_gain is not None:
            parts.append(
                f"for {words_of(one.aim, cut)} {one.rival.name} is better "
                f"({one.rival_gain.words()}; KL {write.number(one.rival.kl)} against "
                f"{write.number(cut.kl)})"
            )
        elif one.word == "matched" and one.rival and one.gain and one.rival_gain:
            parts.append(
                f"{words_of(one.aim, cut)} ({one.gain.words()}) is not surely better than "
                f"{one.rival.name}'s ({one.rival_gain.words()}), which loses less "
                f"(KL {write.number(one.rival.kl)} against {write.number(cut.kl)})"
            )
        elif one.word == "not better":
            how = f" ({one.gain.words()})" if one.gain is not None else ""
            parts.append(f"{words_of(one.aim, cut)} is not surely better{how}")
    missing = [one.aim.words for one in found if one.word == "not measured"]
    if missing:
        parts.append(f"not measured: {', '.join(missing)}")
    if not others:
        parts.append("harder quantizations of the dense model were not compared (--frontier)")
    return "; ".join(parts)
