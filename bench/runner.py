"""The interleaved runner: all artifacts measured side by side, batch 1, in rounds.

A machine's speed drifts: heat costs a third on a laptop (mlx-lm PR #1010), one warm-up is not
enough (llama.cpp PR #21282). So every session is opened once and kept (`rows`), warm-up rounds go
on until the speeds settle (`warmup`), each round times every test of every artifact once in a
random, seeded order (`rounds`), and the speed-up is taken within rounds (`outcome`).

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
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import clp_edge
from clp_edge import waiting
from clp_edge.bench import outcome
from clp_edge.bench.affinity import choose_cpus
from clp_edge.bench.bandwidth import read_bandwidth
from clp_edge.bench.neighbours import Neighbours, processor_seconds
from clp_edge.bench.probes import CALM_LIMIT_S, Load, busy_warning, probe, wait_until_calm
from clp_edge.bench.probes.builds import builds_of
from clp_edge.bench.probes.suite import Probes
from clp_edge.bench.rounds import measure
from clp_edge.bench.rows import Opener, Row, Steps, open_rows
from clp_edge.bench.settings import MINIMUM_ROUNDS, BenchItem, BenchSettings
from clp_edge.bench.warmup import fit, warm_up
from clp_edge.errors import UsageError
from clp_edge.progress import Progress, silent
from clp_edge.records import BandwidthRecord, BenchRecord, BenchSettingsRecord, MemoryRecord
from clp_edge.runtimes import default_threads
from clp_edge.runtimes import open_artifact as open_in_runtime

__all__ = ["BenchItem", "BenchSettings", "run_bench"]

# Beside a busy neighbour single rounds stray, and of 12 the two lowest and highest are left out of
# the interval. Decided by the load alone, before anything is timed, so it favours no outcome. Where
# so many do not fit the budget, the tests are shortened: many short rounds tell more than few long
# ones when a neighbour comes and goes.
BUSY_ROUNDS = 12
# The wait for a calm machine comes before the budget's time; so much of it at most.
CALM_BUDGET_SHARE = 0.1
PEAK = "peak resident set of the child process; mapped weights count once touched"
TIMED = (
    "as llama-bench: random token ids, one sequence, batch 1, a synchronize at each end; no "
    "tokenizer and no sampling. Prefill: the prompt in batches of 512 at most, logits of the last "
    "token alone. Decode: one token at a time from the depth on, not from the prompt. First token: "
    "prefill and the choice of the most likely one"
)


def run_bench(
    items: Sequence[BenchItem],
    settings: BenchSettings,
    *,
    open_artifact: Opener = open_in_runtime,
    progress: Progress = silent,
    root: Path = Path("/"),
    measure_bandwidth: Callable[[int], BandwidthRecord | None] | None = None,
    probes: Probes | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> BenchRecord:
    """Measure the artifacts and return what report.json says of the bench.

    A busy machine is waited for first, for a little while. Every child waits at barriers in the
    same way (`clp_edge.waiting`) and runs on the same processors (`bench.affinity`); the record's
    settings say in which and on which.

    An artifact that cannot be opened or dies gets status "failed" and the reason; the others go on.
    Timings: tokens per second, milliseconds; every list has one value a round, in the same order.
    """
    if not items:
        raise UsageError("nothing to measure", "give at least one artifact")
    if len({item.name for item in items}) != len(items):
        raise UsageError("two artifacts have the same name", "name them apart")
    bandwidth_of = measure_bandwidth or (lambda threads: read_bandwidth(threads, root=root))
    threads = settings.threads or default_threads()
    cpus = settings.cpus or choose_cpus(threads, root=root)
    taken = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    device = probe(root)
    load = _calm(settings, root, sleep, progress)
    if load.busy:
        settings = replace(settings, rounds=max(settings.rounds, BUSY_ROUNDS))
    how_they_wait = waiting.in_force({**waiting.short_spin(os.environ), **os.environ})
    found = [busy_warning(load, device.load_average_1m), waiting.warning(os.environ)]
    warnings = [text for text in found if text]
    bandwidth = bandwidth_of(threads)
    probes = probes or Probes(root, sleep=sleep)
    rows = [Row(item) for item in items]
    with ExitStack() as stack:
        stack.callback(probes.close)
        probes.before()
        start = clock()
        steps = Steps(len(rows) * len(settings.tests), settings, progress)
        open_rows(rows, settings, open_artifact, stack, probes, threads=threads, cpus=cpus)
        aim = BUSY_ROUNDS if load.busy else MINIMUM_ROUNDS
        tests, shortened = fit(rows, settings, steps, clock() - start, aim=aim)
        cool = partial(sleep, settings.delay_s) if settings.delay_s else (lambda: None)
        warmups, calm = warm_up(rows, tests, settings, steps, clock, start, cool)
        pids = [os.getpid(), *(row.session.pid for row in rows if hasattr(row.session, "pid"))]
        neighbours = Neighbours(root, partial(processor_seconds, pids))
        order = measure(
            rows, tests, settings, steps, probes, clock, start, warmups, cool, neighbours
        )
        memory: dict[str, MemoryRecord] = {}
        for row in rows:
            row.attempt(partial(_note_memory, row, probes, memory))
        heat, hot = probes.after()
    if any(row.alive for row in rows):
        warnings += _remarks(settings, shortened, warmups, calm, len(order))
    warnings += [*([told] if (told := neighbours.warning()) else []), *hot]
    cards = outcome.cards_of(rows)
    return BenchRecord(
        device={
            **device.as_dict(),
            "busy_share_before": load.before,
            "builds": builds_of(row.info.runtime for row in rows if row.info),
        },
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
            busy_share_of_others=tuple(neighbours.shares),
            waited_for_calm_s=load.waited_s,
            waiting=how_they_wait,
            time_budget_s=settings.time_budget_s,
            seed=settings.seed,
            order=order,
            seconds=clock() - start,
            memory=PEAK,
            cpus=cpus,
            delay_s=settings.delay_s,
            timed=TIMED,
            energy=probes.describe(),
        ),
        runs=outcome.run_records(rows, tests, cards, bandwidth, probes, memory),
        speedup=outcome.speedups(
            rows, tests, cards, bandwidth.cache_bytes if bandwidth is not None else None
        ),
        warnings=tuple(warnings),
        heat=heat,
        taken=taken,
        versions={"clp-edge": clp_edge.__version__, "python": platform.python_version()},
    )


def _calm(
    settings: BenchSettings, root: Path, sleep: Callable[[float], object], progress: Progress
) -> Load:
    patience = min(CALM_LIMIT_S, CALM_BUDGET_SHARE * (settings.time_budget_s or math.inf))
    return wait_until_calm(root, limit_s=patience, sleep=sleep, say=partial(progress, 0, 1))


def _note_memory(row: Row, probes: Probes, memory: dict[str, MemoryRecord]) -> None:
    row.note_memory()
    memory[row.item.name] = probes.memory(row.item.name, row.session)


def _remarks(
    settings: BenchSettings, shortened: str | None, warmups: int, calm: bool, rounds: int
) -> list[str]:
    """What a reader must know of how it went."""
    said = [shortened] if shortened else []
    if not calm:
        said.append(f"the speeds had not settled after {warmups} warm-up round(s)")
    if rounds < settings.rounds:
        said.append(f"the time budget ended the bench after {rounds} rounds")
    if rounds < outcome.LEAST_FOR_A_PAIR:
        said.append(
            f"fewer than two rounds were measured ({rounds}): there is no interval and no "
            "speed-up; give a larger --time-budget, a shorter prompt or answer, or fewer tests"
        )
    return said
