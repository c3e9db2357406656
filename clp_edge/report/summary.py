"""The one table: quality, speed, memory, energy and size, before and after, for each target.

`before` is the dense artifact and `after` the healed one of the same target; a first group compares
the models before quantization. Everything is text already, so that the console, report.md and the
card show the same words.

>>> [row.label for row in summary_table(report)][:2]                        # doctest: +SKIP
['perplexity', 'KL to dense (nats)']
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from clp_edge.records import QualityRecord, RatioRecord, Report, RunRecord, SpeedupRecord
from clp_edge.report import format as write
from clp_edge.report.blocks import Table, Text
from clp_edge.report.facts import Pair, model_quality, pairs, sequences
from clp_edge.report.format import NOT_MEASURED

HEADER = ("", "before (dense)", "after (pruned)", "change")
MODEL_GROUP = "model, before quantization"
UNKNOWN = QualityRecord(None, None, None, None, None, {})


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table; `group` is the target (or the model before quantization)."""

    group: str
    label: str
    before: str
    after: str
    change: str


# label, samples, part of the speed-up, unit
SPEEDS: tuple[tuple[str, str, Callable[[SpeedupRecord], RatioRecord], str], ...] = (
    ("prefill", "prefill_tps", lambda speedup: speedup.prefill, "tok/s"),
    ("decode", "decode_tps", lambda speedup: speedup.decode, "tok/s"),
    ("time to first token", "ttft_ms", lambda speedup: speedup.ttft, "ms"),
)
COSTS: tuple[tuple[str, Callable[[RunRecord], float | None], str], ...] = (
    ("peak memory (resident)", lambda run: run.peak_rss_mib, "MiB"),
    ("energy per token", lambda run: run.j_per_token, "J"),
)


def summary_block(report: Report) -> Table | Text:
    """The table as a block, a heading row for each group."""
    lines: list[tuple[str, ...]] = []
    for group, rows in groupby(summary_table(report), key=lambda row: row.group):
        lines.append((group,))
        lines += [(row.label, row.before, row.after, row.change) for row in rows]
    return Table(HEADER, tuple(lines)) if lines else Text("Nothing was measured.")


def summary_table(report: Report) -> list[SummaryRow]:
    """All rows of the table, the groups one after another."""
    n = sequences(report)
    rows: list[SummaryRow] = []
    dense, healed = model_quality(report)
    if dense is not None or healed is not None:
        rows += _quality_rows(MODEL_GROUP, dense, healed, n)
        pruned = report.quality.get("pruned")
        if pruned is not None and "healed" in report.quality:
            label = "perplexity, cut but not healed"
            rows.append(_perplexity_row(MODEL_GROUP, label, dense or UNKNOWN, pruned, n))
    for pair in pairs(report):
        rows += _quality_rows(pair.target, pair.quality_before, pair.quality_after, n)
        rows += _size_rows(pair)
        rows += _speed_rows(pair)
    return rows


def _quality_rows(
    group: str, before: QualityRecord | None, after: QualityRecord | None, n: int | None
) -> list[SummaryRow]:
    first, second = before or UNKNOWN, after or UNKNOWN
    kl = [write.spread(side.kl, side.kl_se, n, write.fixed(side.kl, 3)) for side in (first, second)]
    points = ""
    if first.top1_agreement is not None and second.top1_agreement is not None:
        points = f"{100 * (second.top1_agreement - first.top1_agreement):+.1f} points"
    added = ""
    if first.kl is not None and second.kl is not None:
        added = f"{second.kl - first.kl:+.3f}"
    shown = [write.percent(side.top1_agreement) for side in (first, second)]
    rows = [
        _perplexity_row(group, "perplexity", first, second, n),
        SummaryRow(group, "KL to dense (nats)", kl[0], kl[1], added),
        SummaryRow(group, "top-1 agreement", shown[0], shown[1], points),
    ]
    sane = [side.tasks.get("sanity") for side in (first, second)]
    if any(sane):
        passed = [f"{one['passed']} of {one['total']}" if one else NOT_MEASURED for one in sane]
        rows.append(SummaryRow(group, "sanity prompts passed", passed[0], passed[1], ""))
    return rows


def _perplexity_row(
    group: str, label: str, before: QualityRecord, after: QualityRecord, n: int | None
) -> SummaryRow:
    shown = [
        write.spread(side.perplexity, side.perplexity_se, n, write.perplexity(side.perplexity))
        for side in (before, after)
    ]
    first, second = before.perplexity, after.perplexity
    change = write.ratio(second / first) if first and second else ""
    return SummaryRow(group, label, shown[0], shown[1], change)


def _size_rows(pair: Pair) -> list[SummaryRow]:
    first, second = pair.before.bytes if pair.before else None, pair.after.bytes
    change = f"{100 * (second / first - 1):+.1f} %" if first else ""
    bits = [
        write.fixed(side.bits_per_weight if side else None, 2) for side in (pair.before, pair.after)
    ]
    return [
        SummaryRow(pair.target, "file size", write.mib(first), write.mib(second), change),
        SummaryRow(pair.target, "bits per weight", bits[0], bits[1], ""),
    ]


def _speed_rows(pair: Pair) -> list[SummaryRow]:
    rows, runs = [], (pair.run_before, pair.run_after)
    for label, samples, part, unit in SPEEDS:
        shown = [write.interval(run.summary.get(samples) if run else None, 1, unit) for run in runs]
        change = _speedup(pair.speedup, part)
        rows.append(SummaryRow(pair.target, label, shown[0], shown[1], change))
    for label, cost, unit in COSTS:
        values = [cost(run) if run else None for run in runs]
        shown = [
            NOT_MEASURED if value is None else f"{write.number(value)} {unit}" for value in values
        ]
        change = f"{100 * (values[1] / values[0] - 1):+.1f} %" if values[0] and values[1] else ""
        rows.append(SummaryRow(pair.target, label, shown[0], shown[1], change))
    return rows


def _speedup(speedup: SpeedupRecord | None, part_of: Callable[[SpeedupRecord], RatioRecord]) -> str:
    if speedup is None:
        return NOT_MEASURED
    part, n = part_of(speedup), speedup.n
    low, high = write.fixed(part.low, 2), write.fixed(part.high, 2)
    sure = write.sureness(speedup.confidence, n)
    shown = f"{low} to {high}, {sure}" if n > 1 else "n 1"
    ideal = f"; ideal {write.ratio(part.ideal)}" if part.ideal is not None else ""
    return f"{write.ratio(part.median)} ({shown}{ideal})"
