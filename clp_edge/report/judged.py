"""Sections on what was asked for and whether it holds: the quality gate, its tries, tasks, sanity.

Each is a function of the report that gives blocks, or None where it was not part of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from clp_edge.records import (
    AnswerRecord,
    MetricRecord,
    QualityRecord,
    Report,
    SanityRecord,
    TaskRecord,
    from_plain,
)
from clp_edge.report import format as write
from clp_edge.report.blocks import Answers, Block, Heading, Items, Plot, Series, Table, Text
from clp_edge.report.format import NOT_MEASURED

SANITY = "sanity"
BEFORE_QUANTIZATION = ("dense", "healed")
TASKS_NOTE = (
    "acc takes the choice of the highest log-probability, acc_norm that of the highest per "
    "character. Brackets are Wilson's 95 % intervals. Kept beyond chance is (accuracy - chance) / "
    "(dense - chance) over the same items, with a paired 95 % bootstrap."
)
SANITY_NOTE = (
    "Fixed prompts with a plain rule each, answered greedily through the chat template; brackets "
    "are Wilson's 95 % intervals. A prompt that the dense model passes and the pruned one fails "
    "says much, a pass little."
)
ANSWERS_SHOWN = 6


def gate(report: Report) -> Sequence[Block] | None:
    """The quality that was asked for, and what each shipped file says to it."""
    asked = report.quality_gate
    if asked is None:
        return None
    limits = [
        f"{name} {sign} {limit:g}{unit}"
        for name, sign, limit, unit in (
            ("perplexity over the dense model's", "≤", asked.max_ppl_ratio, ""),
            ("KL to the dense model", "≤", asked.max_kl, " nats"),
            ("kept of every task beyond chance", "≥", asked.min_retention, ""),
        )
        if limit is not None
    ]
    blocks: list[Block] = [
        Heading("The quality asked for"),
        Text(
            "reached" if asked.passed else "not reached",
            lead="The shipped files:",
            style="strong",
        ),
        Text(f"Asked for: {'; '.join(limits)}. Judged by what was measured on the file itself."),
    ]
    missed = [f"{name}: {miss}" for name, misses in asked.misses.items() for miss in misses]
    rows = tuple(_gate_row(report, name, bool(asked.misses[name])) for name in asked.misses)
    header = ("file", "perplexity ratio", "KL to dense", "kept beyond chance", "verdict")
    blocks.append(Table(header, rows))
    return [*blocks, Items(tuple(missed))] if missed else blocks


def _gate_row(report: Report, name: str, missed: bool) -> tuple[str, ...]:
    quality = report.quality.get(name)
    if quality is None:
        return (name, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED, "missed")
    kept = [metric.retention for _, metric in quoted(quality) if metric.retention is not None]
    return (
        name,
        _within(quality.ppl_ratio, quality.ppl_ratio_low, quality.ppl_ratio_high),
        write.fixed(quality.kl, 3),
        write.fixed(min(kept, default=None), 2),
        "missed" if missed else "reached",
    )


def tries(report: Report) -> Sequence[Block] | None:
    """Every cut that --prune auto tried."""
    found = report.tries
    if found is None:
        return None
    rows = tuple(
        (
            str(one.count),
            f"{one.blocks.first}-{one.blocks.last}",
            f"{100 * one.predicted:.0f} %",
            NOT_MEASURED if one.measured is None else f"{100 * one.measured:.0f} %",
            write.fixed(one.ppl_ratio, 3),
            write.fixed(one.kl, 3),
            write.fixed(one.retention, 2),
            "passes" if one.passed else "misses",
        )
        for one in found.tries
    )
    header = (
        "blocks gone",
        "which",
        "predicted",
        "measured",
        "perplexity ratio",
        "KL to dense",
        "kept beyond chance",
        "verdict",
    )
    points = found.prediction.cuts
    curve = Series(
        "predicted (refit, held-back calibration text)",
        tuple(float(one.count) for one in points),
        tuple(one.kl_mended for one in points),
    )
    done = sorted(found.tries, key=lambda one: one.count)
    measured = Series(
        "measured on the file",
        tuple(float(one.count) for one in done),
        tuple(one.kl for one in done),
    )
    return [
        Heading("How much goes: every try"),
        Text(f"{found.note[:1].upper()}{found.note[1:]}."),
        Table(header, rows),
        Text(
            "Predicted and measured are shares of what the limits allow, of several the worst: "
            f"above 100 % is a miss. The curve allows {write.number(found.allowed_kl)} nats."
        ),
        Plot("KL over the size of the cut", "blocks gone", "KL (nats)", (curve, measured)),
    ]


def tasks(report: Report) -> Sequence[Block] | None:
    """What every side answered to the questions."""
    table = tasks_block(report.quality)
    if table is None:
        return None
    warned = dict.fromkeys(
        f"{name}: the dense model itself is at chance, so what is kept cannot be said"
        for quality in report.quality.values()
        for name, metric in quoted(quality)
        if metric.dense_at_chance
    )
    noted: list[Block] = [Items(tuple(warned))] if warned else []
    return [Heading("Tasks"), table, *noted, Text(TASKS_NOTE)]


def tasks_block(quality: Mapping[str, QualityRecord]) -> Table | None:
    """Right answers of every side, a group a task; None where nothing was asked."""
    names = dict.fromkeys(name for one in quality.values() for name in one.tasks if name != SANITY)
    rows: list[tuple[str, ...]] = []
    for name in names:
        found = {
            side: from_plain(one.tasks[name], TaskRecord)
            for side, one in quality.items()
            if name in one.tasks
        }
        first = next(iter(found.values()))
        rows.append((f"{name}: {first.items} items, quoted by {first.metric}",))
        for side, task in found.items():
            rows += [_task_row(side, metric, of) for metric, of in task.metrics.items()]
    header = ("who", "metric", "right", "guessing", "kept beyond chance")
    return Table(header, tuple(rows)) if rows else None


def _task_row(side: str, name: str, metric: MetricRecord) -> tuple[str, ...]:
    right = f"{write.percent(metric.value)} ({100 * metric.low:.1f} to {100 * metric.high:.1f})" + (
        ", at chance" if metric.at_chance else ""
    )
    kept = (
        "dense is at chance"
        if metric.dense_at_chance
        else _within(metric.retention, metric.retention_low, metric.retention_high, 2)
    )
    return (side, name, right, write.percent(metric.chance), kept)


def sanity(report: Report) -> Sequence[Block] | None:
    """The fixed prompts: pass rates, and the answers beside one another."""
    table = sanity_block(report.quality)
    if table is None:
        return None
    return [
        Heading("Does it still talk sense?"),
        table,
        Text(SANITY_NOTE),
        *_beside(talks(report.quality)),
    ]


def sanity_block(quality: Mapping[str, QualityRecord]) -> Table | None:
    """Pass rates of every side, in all and of each kind; None where nothing was asked."""
    found = talks(quality)
    if not found:
        return None
    kinds = dict.fromkeys(kind for one in found.values() for kind in one.kinds)
    header = ("who", "passed", *kinds)
    rows = tuple(
        (
            side,
            f"{one.passed} of {one.total}{_ends(one)}",
            *(_rate(one, kind) for kind in kinds),
        )
        for side, one in found.items()
    )
    return Table(header, rows)


def talks(quality: Mapping[str, QualityRecord]) -> dict[str, SanityRecord]:
    """The prompts' record of every side that was asked."""
    return {
        side: from_plain(one.tasks[SANITY], SanityRecord)
        for side, one in quality.items()
        if SANITY in one.tasks
    }


def quoted(quality: QualityRecord) -> Iterator[tuple[str, MetricRecord]]:
    """Of every task its name and the metric that a verdict quotes."""
    for name, plain in quality.tasks.items():
        if name != SANITY:
            task = from_plain(plain, TaskRecord)
            yield name, task.metrics[task.metric]


def _ends(one: SanityRecord) -> str:
    if one.low is None or one.high is None:
        return ""
    return f" ({100 * one.low:.0f} to {100 * one.high:.0f} %)"


def _rate(one: SanityRecord, kind: str) -> str:
    rate = one.kinds.get(kind)
    return "not asked" if rate is None else f"{rate.passed} of {rate.total}"


def _beside(found: Mapping[str, SanityRecord]) -> Iterator[Block]:
    """The prompts that are answered otherwise come first; the rest is in report.json."""
    by_prompt: dict[str, list[tuple[str, AnswerRecord]]] = {}
    for side, one in found.items():
        for answer in one.answers:
            by_prompt.setdefault(answer.prompt, []).append((side, answer))
    torn = [said for said in by_prompt.values() if len({a.passed for _, a in said}) > 1]
    alike = [said for said in by_prompt.values() if len({a.passed for _, a in said}) <= 1]
    shown = [*torn, *alike][:ANSWERS_SHOWN]
    for said in shown:
        yield Answers(
            said[0][1].prompt,
            tuple(
                ("Passed" if answer.passed else "Failed", side, answer.text)
                for side, answer in said
            ),
        )
    rest = len(by_prompt) - len(shown)
    if rest > 0:
        yield Text(f"{rest} more prompts and their answers are in report.json.")


def _within(value: float | None, low: float | None, high: float | None, places: int = 3) -> str:
    if value is None or low is None or high is None:
        return write.fixed(value, places)
    return f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})"
