"""The interleaved runner: all artifacts measured side by side, batch 1, in rounds.

A machine's speed drifts: heat costs a third on a laptop (mlx-lm PR #1010), one warm-up is not
enough (llama.cpp PR #21282). So every session is opened once and kept, each round times every
artifact once in a random, seeded order, warm-up rounds go on until the speeds settle, and the
speed-up is taken within rounds (`statistics.paired_speedup`).

Memory: `peak_rss_mib` is the peak resident set of the child process that runs the artifact. Weights
are mapped from the file: pages that were touched count in it, and they are page cache too, which
the system may take back.

>>> items = [BenchItem("dense", dense, "dense", "gguf-q4_0"),               # doctest: +SKIP
...          BenchItem("healed", healed, "healed", "gguf-q4_0")]
>>> run_bench(items, BenchSettings(rounds=5)).speedup[0].decode.median      # doctest: +SKIP
1.15
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from clp_edge import waiting
from clp_edge.bench import ceiling
from clp_edge.bench.bandwidth import read_bandwidth
from clp_edge.bench.probes import CALM_LIMIT_S, busy_warning, probe, wait_until_calm
from clp_edge.bench.statistics import CONFIDENCE, paired_speedup, settled
from clp_edge.errors import ClpEdgeError, UsageError
from clp_edge.metrics import median_interval
from clp_edge.progress import Progress, silent
from clp_edge.records import (
    BandwidthRecord,
    BenchRecord,
    BenchSettingsRecord,
    RatioRecord,
    RunRecord,
    SpeedupRecord,
    SummaryRecord,
    TestRecord,
    Variant,
)
from clp_edge.runtimes import Timing, default_threads
from clp_edge.runtimes import open_artifact as open_in_runtime

METRICS = ("prefill_tps", "decode_tps", "ttft_ms")
# Name in a speed-up -> (samples it is made of, whether lower is better).
SPEEDUPS = {
    "prefill": ("prefill_tps", False),
    "decode": ("decode_tps", False),
    "ttft": ("ttft_ms", True),
}
WARMUP_WINDOW = 3
WARMUP_LIMIT = 0.05
# At most half as many warm-up rounds as measured ones, and never more than six: a virtual machine
# may never settle, and then the rounds are better spent on the interval.
WARMUP_CAP = 6
# A budget does not cut the rounds below this: fewer cannot attain 95 % (metrics.median_interval).
MINIMUM_ROUNDS = 6
WARMUP_BUDGET_SHARE = 0.4
# Beside a busy neighbour single rounds stray, and of 12 the two lowest and highest are left out of
# the interval. Decided by the load alone, before anything is timed, so it favours no outcome.
BUSY_ROUNDS = 12
# The wait for a calm machine comes before the budget's time; so much of it at most.
CALM_BUDGET_SHARE = 0.1
# ... unless the machine slowed down so much that they would take this many budgets.
HARD_STOP = 2.0
# The look at a machine's speed before the budget is dealt out, and the smallest test that is left.
PILOT_PROMPT, PILOT_GENERATE = 32, 8
SMALLEST_PROMPT, SMALLEST_GENERATE = 32, 16


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

    `time_budget_s` (None: as long as it takes) bounds warm-up and rounds together. Where the least
    of both does not fit, the prompt and the answer are shortened, and a warning says so.
    """

    prompt: int = 512
    generate: int = 128
    depth: int = 0
    rounds: int = MINIMUM_ROUNDS
    warmup_rounds: int = 1
    threads: int | None = None
    seed: int = 0
    time_budget_s: float | None = 180.0

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("generate", 1), ("depth", 0), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"bench {name} must be at least {least}")
        if self.warmup_rounds < 1:
            raise UsageError("bench needs at least one warm-up round")
        if self.threads is not None and self.threads < 1:
            raise UsageError("--threads must be at least 1")
        if self.time_budget_s is not None and not self.time_budget_s > 0:
            raise UsageError("the bench's time budget must be more than 0 s")


class Opener(Protocol):
    """`clp_edge.runtimes.open_artifact`, or a stand-in with the same call."""

    def __call__(self, path: Path, *, threads: int | None, context: int) -> Any: ...


@dataclass
class _Row:
    """One artifact on its way: its open session, its samples, and why it stopped, if it did."""

    item: BenchItem
    session: Any = None
    info: Any = None
    reason: str | None = None
    pilots: list[Timing] = field(default_factory=list)
    warmups: list[float] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in METRICS})
    peak_rss_mib: float | None = None

    @property
    def alive(self) -> bool:
        return self.reason is None


def run_bench(
    items: Sequence[BenchItem],
    settings: BenchSettings,
    *,
    open_artifact: Opener = open_in_runtime,
    progress: Progress = silent,
    root: Path = Path("/"),
    measure_bandwidth: Callable[[int], BandwidthRecord | None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> BenchRecord:
    """Measure the artifacts and return what report.json says of the bench.

    A busy machine is waited for first, for a little while. Every child waits at barriers in the
    same way (`clp_edge.waiting`); `settings.waiting` says in which.

    An artifact that cannot be opened or dies gets status "failed" and the reason; the others go on.
    Timings: tokens per second, milliseconds; every list has one value a round, in the same order.
    """
    if not items:
        raise UsageError("nothing to measure", "give at least one artifact")
    if len({item.name for item in items}) != len(items):
        raise UsageError("two artifacts have the same name", "name them apart")
    measure = measure_bandwidth or (lambda threads: read_bandwidth(threads, root=root))
    threads = settings.threads or default_threads()
    device = probe(root)
    patience = min(CALM_LIMIT_S, CALM_BUDGET_SHARE * (settings.time_budget_s or math.inf))
    load = wait_until_calm(root, limit_s=patience, sleep=sleep, say=partial(progress, 0, 1))
    if load.busy:
        settings = replace(settings, rounds=max(settings.rounds, BUSY_ROUNDS))
    how_they_wait = waiting.in_force({**waiting.short_spin(os.environ), **os.environ})
    found = [busy_warning(load, device.load_average_1m), waiting.warning(os.environ)]
    warnings = [text for text in found if text]
    bandwidth = measure(threads)
    rows = [_Row(item) for item in items]
    context = settings.depth + max(settings.prompt, settings.generate) + 1
    start = clock()
    with ExitStack() as stack:
        for row in rows:
            _open(row, open_artifact, stack, threads=threads, context=context)
        steps = _Steps(len(rows), settings, progress)
        settings, shortened = _fit(rows, settings, steps, clock() - start)
        if shortened:
            warnings.append(shortened)
        warmups, calm = _warm_up(rows, settings, steps, clock, start)
        if not calm:
            warnings.append(f"the speeds had not settled after {warmups} warm-up round(s)")
        order = _measure(rows, settings, steps, clock, start, warmups)
        for row in rows:
            _attempt(row, partial(_note_memory, row))
    if any(row.alive for row in rows) and len(order) < settings.rounds:
        warnings.append(f"the time budget ended the bench after {len(order)} rounds")
    costs = {row.item.name: _card(row) for row in rows}
    runs = [_run(row, settings, costs[row.item.name], bandwidth) for row in rows]
    return BenchRecord(
        device={**device.as_dict(), "busy_share_before": load.before},
        settings=BenchSettingsRecord(
            threads=threads,
            batch=1,
            rounds=len(order),
            warmup_rounds=warmups,
            power_mode=device.power_mode,
            memory_bandwidth_gb_s=bandwidth.gb_per_s if bandwidth else None,
            memory_bandwidth=bandwidth,
            busy_share_before=load.before,
            busy_share_after_wait=load.after,
            waited_for_calm_s=load.waited_s,
            waiting=how_they_wait,
            time_budget_s=settings.time_budget_s,
            seed=settings.seed,
            order=order,
            seconds=clock() - start,
            memory="peak resident set of the child process; mapped weights count once touched",
        ),
        runs=tuple(runs),
        speedup=_speedups(rows, settings, costs),
        warnings=tuple(warnings),
    )


class _Steps:
    """Counts timed runs, so that progress moves by equal steps of work."""

    def __init__(self, items: int, settings: BenchSettings, progress: Progress) -> None:
        self.done = 0
        self.total = items * (settings.warmup_rounds + settings.rounds)
        self.items = items
        self.progress = progress

    def say(self, note: str) -> None:
        self.progress(self.done, max(self.total, self.done), note)

    def step(self) -> None:
        self.done += 1


def _attempt(row: _Row, act: Callable[[], object]) -> None:
    """Do it unless the row has failed; a failure is the row's own and is kept as its reason."""
    if not row.alive:
        return
    try:
        act()
    except (ClpEdgeError, OSError, EOFError) as error:
        row.reason = f"{error}" or type(error).__name__


def _open(row: _Row, opener: Opener, stack: ExitStack, *, threads: int, context: int) -> None:
    def act() -> None:
        row.session = opener(row.item.path, threads=threads, context=context)
        stack.callback(_close, row.session)
        row.info = row.session.info

    _attempt(row, act)


def _close(session: Any) -> None:
    try:
        session.close()
    except (ClpEdgeError, OSError, EOFError):
        return  # it is gone already, which is what was wanted


def _note_memory(row: _Row) -> None:
    row.peak_rss_mib = float(row.session.peak_rss_mib())


def _fit(
    rows: list[_Row], settings: BenchSettings, steps: _Steps, spent_s: float
) -> tuple[BenchSettings, str | None]:
    """The settings, shortened where one warm-up and the least rounds would break the budget.

    Every artifact is timed twice on a few tokens (the first run also brings the file's pages in),
    so that a slow machine costs seconds before anything is decided, not a whole round.
    """
    if settings.time_budget_s is None:
        return settings, None
    pilot = replace(
        settings,
        prompt=min(settings.prompt, PILOT_PROMPT),
        generate=min(settings.generate, PILOT_GENERATE),
    )
    for row in rows:
        steps.say(f"first look: {row.item.name}")
        for _ in range(2):
            _attempt(row, partial(_look, row, pilot))
    round_s = sum(_round_seconds(row, pilot, settings) for row in rows if row.alive)
    least = settings.warmup_rounds + min(settings.rounds, MINIMUM_ROUNDS)
    left_s = max(settings.time_budget_s - spent_s, 0.0)
    if round_s * least <= left_s:
        return settings, None
    share = left_s / (round_s * least)
    shorter = replace(
        settings,
        prompt=max(min(SMALLEST_PROMPT, settings.prompt), math.floor(settings.prompt * share)),
        generate=max(
            min(SMALLEST_GENERATE, settings.generate), math.floor(settings.generate * share)
        ),
    )
    if shorter == settings:
        return settings, None
    return shorter, (
        f"a round would have taken about {round_s:.0f} s: the prompt was shortened from "
        f"{settings.prompt} to {shorter.prompt} tokens and the answer from {settings.generate} to "
        f"{shorter.generate}, to keep to the time budget of {settings.time_budget_s:.0f} s"
    )


def _look(row: _Row, pilot: BenchSettings) -> None:
    row.pilots.append(_timed(row, pilot, pilot.seed))


def _round_seconds(row: _Row, pilot: BenchSettings, settings: BenchSettings) -> float:
    """What one timed run of the artifact will take, from its fastest looks."""
    per_prompt = min(timing.prefill_s for timing in row.pilots) / pilot.prompt
    per_token = min(timing.decode_s for timing in row.pilots) / pilot.generate
    # the prompt, and the depth once before it and, where the cache cannot step back, once more
    return per_prompt * (settings.prompt + 2 * settings.depth) + per_token * settings.generate


def _warm_up(
    rows: list[_Row],
    settings: BenchSettings,
    steps: _Steps,
    clock: Callable[[], float],
    start: float,
) -> tuple[int, bool]:
    """Rounds that are thrown away, until the last decode speeds of every artifact agree.

    Returns how many were made and whether they settled before the cap or the budget's share.
    """
    cap = max(settings.warmup_rounds, min(WARMUP_CAP, max(WARMUP_WINDOW, settings.rounds // 2)))
    window = max(min(WARMUP_WINDOW, cap), 2)
    least = min(settings.rounds, MINIMUM_ROUNDS)
    made, begun = 0, clock()
    while any(row.alive for row in rows):
        for row in rows:
            steps.say(f"warm-up {made + 1}: {row.item.name}")
            _attempt(row, partial(_warm, row, settings, settings.seed + made))
            steps.step()
        made += 1
        if made >= settings.warmup_rounds:
            live = [row.warmups for row in rows if row.alive]
            if all(settled(speeds, window=window, limit=WARMUP_LIMIT) for speeds in live):
                return made, True
            now, budget = clock(), settings.time_budget_s
            each = (now - begun) / made
            over = budget is not None and (
                now - begun + each > budget * WARMUP_BUDGET_SHARE
                or now - start + each * (1 + least) > budget
            )
            if made >= cap or over:
                return made, False
            steps.total += len(rows)
    return made, True


def _warm(row: _Row, settings: BenchSettings, seed: int) -> None:
    row.warmups.append(_timed(row, settings, seed).decode_tps)


def _timed(row: _Row, settings: BenchSettings, seed: int) -> Timing:
    return row.session.time_once(
        prompt=settings.prompt, generate=settings.generate, depth=settings.depth, seed=seed
    )


def _measure(
    rows: list[_Row],
    settings: BenchSettings,
    steps: _Steps,
    clock: Callable[[], float],
    start: float,
    warmups: int,
) -> tuple[tuple[str, ...], ...]:
    """The rounds that count; returns the order in which each timed its artifacts."""
    shuffler = random.Random(settings.seed)
    order: list[tuple[str, ...]] = []
    first_round = clock()
    for index in range(settings.rounds):
        live = [row for row in rows if row.alive]
        if not live:
            break
        if settings.time_budget_s is not None and index > 0:
            now = clock()
            factor = 1.0 if index >= MINIMUM_ROUNDS else HARD_STOP
            if now - start + (now - first_round) / index > settings.time_budget_s * factor:
                break
        shuffler.shuffle(live)
        seed = settings.seed + warmups + index  # the same tokens for every artifact of a round
        for row in live:
            steps.say(f"round {index + 1} of {settings.rounds}: {row.item.name}")
            _attempt(row, partial(_time, row, settings, seed))
            steps.step()
        order.append(tuple(row.item.name for row in live))
    steps.total = steps.done
    steps.say("measured")
    return tuple(order)


def _time(row: _Row, settings: BenchSettings, seed: int) -> None:
    timing = _timed(row, settings, seed)
    for name in METRICS:
        row.samples[name].append(float(getattr(timing, name)))


def _card(row: _Row) -> ceiling.StaticCard | None:
    """The static card; an unreadable file has no ceiling (its session says why it failed)."""
    try:
        return ceiling.card_of(row.item.path)
    except ClpEdgeError:
        return None


def _run(
    row: _Row,
    settings: BenchSettings,
    card: ceiling.StaticCard | None,
    bandwidth: BandwidthRecord | None,
) -> RunRecord:
    depth = ceiling.mean_decode_depth(settings.generate, settings.depth)
    size = card.bytes_per_token(depth) if card else None
    measured = row.alive and bool(row.samples["decode_tps"])
    summary = {
        name: SummaryRecord(**asdict(median_interval(values, confidence=CONFIDENCE)))
        for name, values in row.samples.items()
        if measured
    }
    # The processor's bandwidth is no ceiling for a GPU, nor for a model that fits in its cache.
    bound = (
        card is not None
        and bandwidth is not None
        and row.info is not None
        and row.info.backend.lower() == "cpu"
        and card.weight_bytes_per_token > bandwidth.cache_bytes
    )
    ideal = bandwidth.gb_per_s * 1e9 / size if bound and bandwidth and size else None
    return RunRecord(
        artifact=row.item.name,
        variant=row.item.variant,
        target=row.item.target,
        runtime=row.info.runtime if row.info else "unknown",
        runtime_version=row.info.runtime_version if row.info else "unknown",
        backend=row.info.backend if row.info else "unknown",
        test=_test(settings),
        status="ok" if measured else "failed",
        reason=None if measured else (row.reason or "nothing was timed"),
        prefill_tps=tuple(row.samples["prefill_tps"]),
        decode_tps=tuple(row.samples["decode_tps"]),
        ttft_ms=tuple(row.samples["ttft_ms"]),
        summary=summary,
        load_ms=float(row.info.load_ms) if row.info else None,
        peak_rss_mib=row.peak_rss_mib,
        peak_gpu_mib=None,
        j_per_token=None,
        bytes_per_token=size,
        ideal_decode_tps=ideal,
        mbu=summary["decode_tps"].median / ideal if measured and ideal else None,
    )


def _test(settings: BenchSettings) -> TestRecord:
    return TestRecord(settings.prompt, settings.generate, settings.depth)


def _speedups(
    rows: list[_Row], settings: BenchSettings, cards: dict[str, ceiling.StaticCard | None]
) -> tuple[SpeedupRecord, ...]:
    """Every healed artifact against the dense one of the same target in the same runtime."""
    pairs = []
    done = [row for row in rows if row.alive and row.samples["decode_tps"]]
    for after in (row for row in done if row.item.variant == "healed"):
        for before in (row for row in done if row.item.variant == "dense"):
            same_target = before.item.target == after.item.target
            if same_target and before.info.runtime == after.info.runtime:
                pairs.append(_pair(before, after, settings, cards))
    return tuple(pairs)


def _pair(
    before: _Row,
    after: _Row,
    settings: BenchSettings,
    cards: dict[str, ceiling.StaticCard | None],
) -> SpeedupRecord:
    first, second = cards[before.item.name], cards[after.item.name]
    ideal: dict[str, float | None] = dict.fromkeys(SPEEDUPS)
    bounds: dict[str, float] = {}
    if first is not None and second is not None:
        depth = ceiling.mean_decode_depth(settings.generate, settings.depth)
        bounds = ceiling.decode_bounds(first, second, depth)
        ideal["decode"] = bounds["bytes"]
        ideal["prefill"] = ceiling.ideal_prefill(first, second, settings.prompt, settings.depth)
    found = {
        name: paired_speedup(
            before.samples[samples], after.samples[samples], lower_is_better=lower_is_better
        )
        for name, (samples, lower_is_better) in SPEEDUPS.items()
    }
    ratios = {
        name: RatioRecord(
            before=speedup.before,
            after=speedup.after,
            median=speedup.ratio.median,
            low=speedup.ratio.low,
            high=speedup.ratio.high,
            ideal=ideal[name],
            bounds=bounds if name == "decode" else {},
        )
        for name, speedup in found.items()
    }
    return SpeedupRecord(
        target=after.item.target,
        runtime=after.info.runtime,
        test=_test(settings),
        before=before.item.name,
        after=after.item.name,
        confidence=found["decode"].ratio.confidence,  # of n alone: the same for all three
        n=len(after.samples["decode_tps"]),
        prefill=ratios["prefill"],
        decode=ratios["decode"],
        ttft=ratios["ttft"],
    )
