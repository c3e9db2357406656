"""From samples to records: a run for each artifact and test, a speed-up for each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from clp_edge.bench import ceiling
from clp_edge.bench.probes.suite import Probes
from clp_edge.bench.rounds import label
from clp_edge.bench.rows import METRICS, Row
from clp_edge.bench.statistics import CONFIDENCE, paired_speedup
from clp_edge.errors import ClpEdgeError
from clp_edge.medians import median_interval
from clp_edge.records import (
    BandwidthRecord,
    MemoryRecord,
    RatioRecord,
    RunRecord,
    SpeedupRecord,
    SummaryRecord,
    TestRecord,
)

# Name in a speed-up -> (samples it is made of, whether lower is better).
SPEEDUPS = {
    "prefill": ("prefill_tps", False),
    "decode": ("decode_tps", False),
    "ttft": ("ttft_ms", True),
}
# One round has no interval and its ratio no spread: nothing can be said of a pair.
LEAST_FOR_A_PAIR = 2
# Tokens' times are kept to three significant places, and no more of them than this for a test:
# fifteen rounds of 512 tokens, some 40 kB of the report.
TOKEN_PLACES = 3
TOKENS_KEPT = 8192

Cards = Mapping[str, ceiling.StaticCard | None]


def cards_of(rows: Sequence[Row]) -> Cards:
    """The static card by artifact; an unreadable file has none (its session says why it failed)."""
    found: dict[str, ceiling.StaticCard | None] = {}
    for row in rows:
        try:
            found[row.item.name] = ceiling.card_of(row.item.path)
        except ClpEdgeError:
            found[row.item.name] = None
    return found


def run_records(
    rows: Sequence[Row],
    tests: Sequence[TestRecord],
    cards: Cards,
    bandwidth: BandwidthRecord | None,
    probes: Probes,
    memory: Mapping[str, MemoryRecord],
) -> tuple[RunRecord, ...]:
    """One for each artifact and test, the artifacts in the order they were given."""
    return tuple(
        _run(row, test, cards[row.item.name], bandwidth, probes, memory, label(row, test, tests))
        for row in rows
        for test in tests
    )


def _run(
    row: Row,
    test: TestRecord,
    card: ceiling.StaticCard | None,
    bandwidth: BandwidthRecord | None,
    probes: Probes,
    memory: Mapping[str, MemoryRecord],
    name: str,
) -> RunRecord:
    samples = row.of(test)
    values = {metric: samples.of(metric) for metric in METRICS}
    size = (
        card.bytes_per_token(ceiling.mean_decode_depth(test.generate, test.depth)) if card else None
    )
    measured = row.alive and bool(samples.timings)
    summary = {
        metric: SummaryRecord(**asdict(median_interval(found, confidence=CONFIDENCE)))
        for metric, found in values.items()
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
    taken = memory.get(row.item.name)
    energy = probes.energy(name) if measured else None
    gross = energy.gross if energy is not None else None
    return RunRecord(
        artifact=row.item.name,
        variant=row.item.variant,
        target=row.item.target,
        runtime=row.info.runtime if row.info else "unknown",
        runtime_version=row.info.runtime_version if row.info else "unknown",
        backend=row.info.backend if row.info else "unknown",
        test=test,
        status="ok" if measured else "failed",
        reason=None if measured else (row.reason or "nothing was timed"),
        prefill_tps=values["prefill_tps"],
        decode_tps=values["decode_tps"],
        ttft_ms=values["ttft_ms"],
        summary=summary,
        load_ms=float(row.info.load_ms) if row.info else None,
        peak_rss_mib=row.peak_rss_mib,
        peak_gpu_mib=taken.gpu_mib if taken is not None else None,
        j_per_token=gross.median if gross is not None else None,
        bytes_per_token=size,
        ideal_decode_tps=ideal,
        mbu=summary["decode_tps"].median / ideal if measured and ideal else None,
        energy=energy,
        memory=taken,
        gpu_layers=row.info.gpu_layers if row.info else None,
        layers=row.info.blocks + 1 if row.info and row.info.gpu_layers is not None else None,
        backend_reason=(row.info.backend_reason or None) if row.info else None,
        token_ms=token_times([timing.token_ms for timing in samples.timings]),
    )


def token_times(rounds: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Each round's times to TOKEN_PLACES significant places.

    Where all are more than TOKENS_KEPT, of as many rounds, evenly spread, as fit; of one at least.
    """
    fit = TOKENS_KEPT // max([1, *map(len, rounds)])
    kept = max(1, min(fit, len(rounds)))
    spread = [rounds[number * len(rounds) // kept] for number in range(kept)] if rounds else []
    return tuple(tuple(float(f"{ms:.{TOKEN_PLACES}g}") for ms in tokens) for tokens in spread)


def speedups(
    rows: Sequence[Row],
    tests: Sequence[TestRecord],
    cards: Cards,
    cache: int | None = None,
) -> tuple[SpeedupRecord, ...]:
    """Every healed artifact against the dense one of the same target in the same runtime.

    `cache`: bytes of the processor's last-level cache, where they are known.
    """
    pairs = []
    done = [row for row in rows if row.alive]
    for after in (row for row in done if row.item.variant == "healed"):
        for before in (row for row in done if row.item.variant == "dense"):
            same = (
                before.item.target == after.item.target
                and before.info.runtime == after.info.runtime
            )
            for test in tests if same else ():
                if len(after.of(test).timings) >= LEAST_FOR_A_PAIR:
                    pairs.append(_pair(before, after, test, cards, cache))
    return tuple(pairs)


def _pair(
    before: Row, after: Row, test: TestRecord, cards: Cards, cache: int | None
) -> SpeedupRecord:
    first, second = cards[before.item.name], cards[after.item.name]
    ideal: dict[str, float | None] = dict.fromkeys(SPEEDUPS)
    bounds: dict[str, float] = {}
    if first is not None and second is not None:
        depth = ceiling.mean_decode_depth(test.generate, test.depth)
        on_cpu = all(row.info.backend.lower() == "cpu" for row in (before, after))
        bounds = ceiling.decode_bounds(first, second, depth, cache if on_cpu else None)
        ideal["decode"] = bounds["bytes"]
        ideal["prefill"] = ceiling.ideal_prefill(first, second, test.prompt, test.depth)
    found = {
        name: paired_speedup(
            before.of(test).of(samples),
            after.of(test).of(samples),
            lower_is_better=lower_is_better,
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
        test=test,
        before=before.item.name,
        after=after.item.name,
        confidence=found["decode"].ratio.confidence,  # of n alone: the same for all three
        n=len(after.of(test).timings),
        prefill=ratios["prefill"],
        decode=ratios["decode"],
        ttft=ratios["ttft"],
    )
