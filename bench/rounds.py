"""The rounds that count: every test of every artifact once a round, in a random, seeded order.

Within a round the tests come in a random order, and within a test the artifacts do, one right after
the other: what is compared is measured close together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from clp_edge.bench.neighbours import Neighbours
from clp_edge.bench.probes.suite import Probes
from clp_edge.bench.rows import Row, Steps
from clp_edge.bench.settings import MINIMUM_ROUNDS, BenchSettings
from clp_edge.records import TestRecord

# A budget does not cut the rounds below MINIMUM_ROUNDS, unless the machine slowed down so much that
# they would take this many budgets.
HARD_STOP = 2.0
# For each round that others disturbed another is taken, up to this many times what was asked for.
AT_MOST = 2


def measure(
    rows: Sequence[Row],
    tests: Sequence[TestRecord],
    settings: BenchSettings,
    steps: Steps,
    probes: Probes,
    clock: Callable[[], float],
    start: float,
    warmups: int,
    cool: Callable[[], object],
    neighbours: Neighbours,
) -> tuple[tuple[str, ...], ...]:
    """Measure; returns the order in which each round timed its artifacts (and tests).

    Every round counts. Where other programs ran during some, as many more are taken as were
    disturbed, as far as the time budget goes; the load alone decides that.
    """
    shuffler = random.Random(settings.seed)
    order: list[tuple[str, ...]] = []
    first_round = clock()
    for index in range(AT_MOST * settings.rounds):
        wanted = settings.rounds + min(neighbours.disturbed, (AT_MOST - 1) * settings.rounds)
        if index >= wanted or not any(row.alive for row in rows):
            break
        if settings.time_budget_s is not None and index > 0:
            now = clock()
            factor = 1.0 if index >= MINIMUM_ROUNDS else HARD_STOP
            if now - start + (now - first_round) / index > settings.time_budget_s * factor:
                break
        seed = settings.seed + warmups + index  # the same tokens for every artifact of a round
        done: list[str] = []
        for test in shuffler.sample(list(tests), len(tests)):
            live = [row for row in rows if row.alive]
            shuffler.shuffle(live)
            for row in live:
                steps.say(f"round {index + 1} of {wanted}: {row.item.name}")
                cool()
                row.attempt(partial(_time, row, test, probes, label(row, test, tests), seed))
                steps.step()
                done.append(label(row, test, tests))
        order.append(tuple(done))
        neighbours.look()
    steps.total = steps.done
    steps.say("measured")
    return tuple(order)


def label(row: Row, test: TestRecord, tests: Sequence[TestRecord]) -> str:
    """The artifact's name, and the test's where there are several."""
    return row.item.name if len(tests) == 1 else f"{row.item.name} {test.name}"


def _time(row: Row, test: TestRecord, probes: Probes, name: str, seed: int) -> None:
    with probes.around(name, row.session) as window:
        timing = row.timed(test, seed)
        window.timed(timing)
    row.of(test).timings.append(timing)
