"""Single tokens of the bench: their time over the depth of the context, and its percentiles.

A mean hides what a reader of streamed text sees: how decode slows down as the cache fills, and the
slowest token of a hundred. Both are taken over the tokens of all rounds that the record kept.

>>> percentile([4.0, 1.0, 3.0, 2.0], 50)
2.0
>>> percentile([4.0, 1.0, 3.0, 2.0], 90) is None  # of four tokens nobody knows the slowest tenth
True
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from clp_edge.records import RunRecord
from clp_edge.report import format as write
from clp_edge.report.blocks import Block, Heading, Plot, Series, Table, Text

PERCENTILES = (50, 90, 99)
# More points than this for one unbroken stretch of depths are put together, neighbours with
# neighbours: on a phone a point is then still wider than its bar.
POINTS = 32
TITLE = "Token by token"
MISSING = "The time of single tokens was not measured."


def latency_blocks(runs: Sequence[RunRecord]) -> Iterator[Block]:
    """A table of percentiles, the two plots and what they are of; or that there is nothing."""
    timed = [run for run in runs if run.status == "ok" and any(run.token_ms)]
    yield Heading(TITLE, 3)
    if not timed:
        yield Text(MISSING)
        return
    names = _names(timed)
    columns = (*(f"p{share} ms" for share in PERCENTILES), "longest ms")
    rows = tuple(_row(name, run) for name, run in zip(names, timed, strict=True))
    yield Table(("file", "tokens", *columns), rows)
    yield Text(" ".join(_said(runs, timed)))
    yield _depth_plot(timed)
    yield _percentile_plot(names, timed)


def percentile(values: Sequence[float], share: int) -> float | None:
    """The least value that `share` percent of them do not exceed (nearest rank).

    None where there are too few of them for a single one to lie beyond it.
    """
    if len(values) * (100 - share) < 100:
        return None
    return sorted(values)[math.ceil(len(values) * share / 100) - 1]


def _tokens(run: RunRecord) -> list[float]:
    return [ms for tokens in run.token_ms for ms in tokens]


def _names(runs: Sequence[RunRecord]) -> list[str]:
    several = len({run.test for run in runs}) > 1
    return [f"{run.artifact}, {run.test.name}" if several else run.artifact for run in runs]


def _row(name: str, run: RunRecord) -> tuple[str, ...]:
    tokens = _tokens(run)
    cells = []
    for share in PERCENTILES:
        found = percentile(tokens, share)
        cells.append("too few tokens" if found is None else write.number(found))
    return (name, f"{len(tokens):,}", *cells, write.number(max(tokens)))


def _said(runs: Sequence[RunRecord], timed: Sequence[RunRecord]) -> Iterator[str]:
    shares = ", ".join(f"{share} %" for share in PERCENTILES)
    names = ", ".join(f"p{share}" for share in PERCENTILES)
    yield f"{names}: {shares} of the tokens took no longer, outliers and all rounds included."
    yield "Over the depth of the context: medians, with bars that hold the middle half."
    width = max(_width(stretch) for run in timed for stretch in _stretches(_by_place([run])))
    if width > 1:
        yield f"A point stands for up to {width} tokens in a row."
    if any(len(run.token_ms) < len(run.decode_tps) for run in timed):
        kept = min(len(run.token_ms) for run in timed)
        yield f"The record keeps the tokens of {kept} rounds or more, evenly spread, not of all."
    without = [run.artifact for run in runs if run.status == "ok" and not any(run.token_ms)]
    if without:
        yield f"Not measured: {', '.join(dict.fromkeys(without))}."


def _depth_plot(runs: Sequence[RunRecord]) -> Plot:
    """A line a file, over all its tests: a token's place is what it finds in the cache."""
    series = []
    for name in dict.fromkeys(run.artifact for run in runs):
        series.append(_over_depth(name, [run for run in runs if run.artifact == name]))
    title = "Time of a token over the depth of the context"
    return Plot(title, "tokens in the cache", "ms a token", tuple(series))


def _by_place(runs: Sequence[RunRecord]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for run in runs:
        for tokens in run.token_ms:
            # As in llama-bench, decode starts from the test's depth, not behind its prompt.
            for place, ms in enumerate(tokens, start=run.test.depth):
                found.setdefault(place, []).append(ms)
    return found


def _stretches(places: dict[int, list[float]]) -> list[list[int]]:
    """The places in order, in runs without a gap."""
    ordered = sorted(places)
    found = [ordered[:1]]
    for before, place in pairwise(ordered):
        if place == before + 1:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _width(stretch: Sequence[int]) -> int:
    return math.ceil(len(stretch) / POINTS)


def _over_depth(name: str, runs: Sequence[RunRecord]) -> Series:
    at = _by_place(runs)
    points: list[tuple[float, float | None, float | None, float | None]] = []
    for stretch in _stretches(at):
        if points:  # a break in the line, where nothing was measured
            points.append(((points[-1][0] + stretch[0]) / 2, None, None, None))
        width = _width(stretch)
        for first in range(0, len(stretch), width):
            places = stretch[first : first + width]
            values = sorted(ms for place in places for ms in at[place])
            low, middle, high = (_rank(values, share) for share in (0.25, 0.5, 0.75))
            points.append((sum(places) / len(places), middle, low, high))
    x, y, lows, highs = zip(*points, strict=True)
    return Series(name, x, y, lows, highs)


def _rank(ordered: Sequence[float], share: float) -> float:
    """By interpolation between neighbours, so that the median of two is their mean."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _percentile_plot(names: Sequence[str], runs: Sequence[RunRecord]) -> Plot:
    x = tuple(float(place) for place in range(len(PERCENTILES)))
    series = tuple(
        Series(name, x, tuple(percentile(_tokens(run), share) for share in PERCENTILES))
        for name, run in zip(names, runs, strict=True)
    )
    ticks = tuple(f"p{share}" for share in PERCENTILES)
    return Plot("Percentiles of a token's time", "percentile", "ms a token", series, ticks=ticks)
