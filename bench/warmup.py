"""Before anything counts: does the least of it fit the budget, and have the speeds settled?

One warm-up is not enough (llama.cpp PR #21282: +-68 %): rounds are thrown away until the last
decode speeds of every artifact agree, or until too much of the time is gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from clp_edge.bench.rows import Row, Steps
from clp_edge.bench.settings import MINIMUM_ROUNDS, BenchSettings
from clp_edge.bench.statistics import settled
from clp_edge.records import TestRecord

WARMUP_WINDOW = 3
WARMUP_LIMIT = 0.05
# At most half as many warm-up rounds as measured ones, and never more than six: a virtual machine
# may never settle, and then the rounds are better spent on the interval.
WARMUP_CAP = 6
WARMUP_BUDGET_SHARE = 0.4
# The look at a machine's speed before the budget is dealt out, and the smallest test that is left.
PILOT_PROMPT, PILOT_GENERATE = 32, 8
SMALLEST_PROMPT, SMALLEST_GENERATE = 32, 16


def fit(
    rows: Sequence[Row],
    settings: BenchSettings,
    steps: Steps,
    spent_s: float,
    *,
    aim: int = MINIMUM_ROUNDS,
) -> tuple[tuple[TestRecord, ...], str | None]:
    """The tests, shortened where one warm-up and `aim` rounds would break the budget.

    Every artifact is timed twice on a few tokens (the first run also brings the file's pages in),
    so that a slow machine costs seconds before anything is decided, not a whole round.
    """
    tests = settings.tests
    if settings.time_budget_s is None:
        return tests, None
    pilot = TestRecord(
        min(PILOT_PROMPT, *(test.prompt for test in tests)),
        min(PILOT_GENERATE, *(test.generate for test in tests)),
        min(test.depth for test in tests),
    )
    for row in rows:
        steps.say(f"first look: {row.item.name}")
        for _ in range(2):
            row.attempt(partial(_look, row, pilot, settings.seed))
    live = [row for row in rows if row.alive]
    round_s = sum(_seconds(row, pilot, test) for row in live for test in tests)
    least = settings.warmup_rounds + min(settings.rounds, aim)
    cooling_s = settings.delay_s * len(live) * len(tests) * least
    left_s = max(settings.time_budget_s - spent_s - cooling_s, 0.0)
    if round_s * least <= left_s:
        return tests, None
    share = left_s / (round_s * least)
    shorter = tuple(dict.fromkeys(_shortened(test, share) for test in tests))
    if shorter == tests:
        return tests, None
    before, after = tests[-1], shorter[-1]
    which = "the prompt was" if len(tests) == 1 else "all tests were"
    return shorter, (
        f"a round would have taken about {round_s:.0f} s: {which} shortened from "
        f"{before.prompt} to {after.prompt} tokens and the answer from {before.generate} to "
        f"{after.generate}, to keep to the time budget of {settings.time_budget_s:.0f} s"
        + ("" if len(tests) == 1 else "; the others in the same measure")
    )


def _shortened(test: TestRecord, share: float) -> TestRecord:
    return replace(
        test,
        prompt=max(min(SMALLEST_PROMPT, test.prompt), math.floor(test.prompt * share)),
        generate=max(min(SMALLEST_GENERATE, test.generate), math.floor(test.generate * share)),
    )


def _look(row: Row, pilot: TestRecord, seed: int) -> None:
    row.pilots.append(row.timed(pilot, seed))


def _seconds(row: Row, pilot: TestRecord, test: TestRecord) -> float:
    """What one timed run of the artifact will take, from its fastest looks."""
    per_prompt = min(timing.prefill_s for timing in row.pilots) / pilot.prompt
    per_token = min(timing.decode_s for timing in row.pilots) / pilot.generate
    # the prompt, and the depth once before it and, where the cache cannot step back, once more
    return per_prompt * (test.prompt + 2 * test.depth) + per_token * test.generate


def warm_up(
    rows: Sequence[Row],
    tests: Sequence[TestRecord],
    settings: BenchSettings,
    steps: Steps,
    clock: Callable[[], float],
    start: float,
    cool: Callable[[], object],
) -> tuple[int, bool]:
    """Rounds that are thrown away, until the last decode speeds of every artifact agree.

    Returns how many were made and whether they settled before the cap or the budget's share.
    """
    cap = max(settings.warmup_rounds, min(WARMUP_CAP, max(WARMUP_WINDOW, settings.rounds // 2)))
    window = max(min(WARMUP_WINDOW, cap), 2)
    least = min(settings.rounds, MINIMUM_ROUNDS)
    made, begun = 0, clock()
    while any(row.alive for row in rows):
        for test in tests:
            for row in rows:
                steps.say(f"warm-up {made + 1}: {row.item.name}")
                if row.alive:
                    cool()
                row.attempt(partial(_warm, row, test, settings.seed + made))
                steps.step()
        made += 1
        if made >= settings.warmup_rounds:
            speeds = [row.of(test).warmups for row in rows if row.alive for test in tests]
            if all(settled(values, window=window, limit=WARMUP_LIMIT) for values in speeds):
                return made, True
            now, budget = clock(), settings.time_budget_s
            each = (now - begun) / made
            over = budget is not None and (
                now - begun + each > budget * WARMUP_BUDGET_SHARE
                or now - start + each * (1 + least) > budget
            )
            if made >= cap or over:
                return made, False
            steps.total += len(rows) * len(tests)
    return made, True


def _warm(row: Row, test: TestRecord, seed: int) -> None:
    row.of(test).warmups.append(row.timed(test, seed).decode_tps)
