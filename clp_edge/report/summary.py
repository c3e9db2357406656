"""The one table: quality, speed, memory, energy and size, before and after, for each target.

`before` is the dense artifact and `after` the healed one of the same target; a first group compares
the models before quantization. Everything is text already, so that the console, report.md and the
card show the same words. `pairs` is how all of them find what belongs together.

>>> [row.label for row in summary_table(report)][:2]       # doctest: +SKIP
['perplexity', 'KL to dense']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clp_edge.report import format as write
from clp_edge.report.format import NOT_MEASURED

HEADER = ("", "before (dense)", "after (pruned)", "change")
MODEL_GROUP = "model, before quantization"


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table; `group` is the target (or the model before quantization)."""

    group: str
    label: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class Pair:
    """What was measured of one target; None where there is no such thing in the report."""

    target: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]
    quality_before: Mapping[str, Any] | None
    quality_after: Mapping[str, Any] | None
    run_before: Mapping[str, Any] | None
    run_after: Mapping[str, Any] | None
    speedup: Mapping[str, Any] | None


def pairs(report: Mapping[str, Any]) -> list[Pair]:
    """Each healed artifact with the dense one of its target, their quality, runs and speed-up."""
    bench = report["bench"] or {"runs": [], "speedup": []}
    runs = {run["artifact"]: run for run in reversed(bench["runs"]) if run["status"] == "ok"}
    found = []
    for after in report["artifacts"]:
        if after["variant"] != "healed":
            continue
        same = [a for a in report["artifacts"] if a["target"] == after["target"]]
        before = next((a for a in same if a["variant"] == "dense"), None)
        name = before["name"] if before else None
        faster = (s for s in bench["speedup"] if (s["before"], s["after"]) == (name, after["name"]))
        found.append(
            Pair(
                target=after["target"],
                before=before,
                after=after,
                quality_before=report["quality"].get(name) if name else None,
                quality_after=report["quality"].get(after["name"]),
                run_before=runs.get(name) if name else None,
                run_after=runs.get(after["name"]),
                speedup=next(faster, None),
            )
        )
    return found


def sequences(report: Mapping[str, Any]) -> int | None:
    """How many sequences the quality figures are means of; None where nothing was evaluated."""
    evaluation = report["evaluation"]
    if evaluation is None or not evaluation["sequence_length"]:
        return None
    return max(1, round(evaluation["tokens"] / evaluation["sequence_length"]))


def model_quality(
    report: Mapping[str, Any],
) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Quality of the dense and the final model before quantization (the cut one if not healed)."""
    quality = report["quality"]
    return quality.get("dense"), quality.get("healed") or quality.get("pruned")


def summary_table(report: Mapping[str, Any]) -> list[SummaryRow]:
    """All rows of the table, the groups one after another."""
    n = sequences(report)
    rows: list[SummaryRow] = []
    dense, healed = model_quality(report)
    if dense is not None or healed is not None:
        rows += _quality_rows(MODEL_GROUP, dense, healed, n)
        pruned = report["quality"].get("pruned")
        if pruned is not None and "healed" in report["quality"]:
            label = "perplexity, cut but not healed"
            rows.append(_perplexity_row(MODEL_GROUP, label, dense, pruned, n))
    for pair in pairs(report):
        rows += _quality_rows(pair.target, pair.quality_before, pair.quality_after, n)
        rows += _size_rows(pair)
        rows += _speed_rows(pair)
    return rows


def _quality_rows(
    group: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, n: int | None
) -> list[SummaryRow]:
    kl = [_mean(side, "kl", "kl_se", n) for side in (before, after)]
    agreement = [_get(side, "top1_agreement") for side in (before, after)]
    points = ""
    if agreement[0] is not None and agreement[1] is not None:
        points = f"{100 * (agreement[1] - agreement[0]):+.1f} points"
    added = ""
    if (first := _get(before, "kl")) is not None and (second := _get(after, "kl")) is not None:
        added = f"{second - first:+.3f}"
    shown = [write.percent(value) for value in agreement]
    rows = [
        _perplexity_row(group, "perplexity", before, after, n),
        SummaryRow(group, "KL to dense (nats)", kl[0], kl[1], added),
        SummaryRow(group, "top-1 agreement", shown[0], shown[1], points),
    ]
    sane = [(side or {}).get("tasks", {}).get("sanity") for side in (before, after)]
    if any(sane):
        passed = [
            f"{one['passed']} of {one['total']}" if one else write.NOT_MEASURED for one in sane
        ]
        rows.append(SummaryRow(group, "sanity prompts passed", passed[0], passed[1], ""))
    return rows


def _perplexity_row(
    group: str,
    label: str,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    n: int | None,
) -> SummaryRow:
    first, second = _get(before, "perplexity"), _get(after, "perplexity")
    shown = [
        write.spread(value, _get(side, "perplexity_se"), n, write.perplexity(value))
        for value, side in ((first, before), (second, after))
    ]
    change = write.ratio(second / first) if first and second else ""
    return SummaryRow(group, label, shown[0], shown[1], change)


def _size_rows(pair: Pair) -> list[SummaryRow]:
    before = pair.before or {}
    first, second = before.get("bytes"), pair.after["bytes"]
    change = f"{100 * (second / first - 1):+.1f} %" if first else ""
    bits = [write.fixed(side.get("bits_per_weight"), 2) for side in (before, pair.after)]
    return [
        SummaryRow(pair.target, "file size", write.mib(first), write.mib(second), change),
        SummaryRow(pair.target, "bits per weight", bits[0], bits[1], ""),
    ]


def _speed_rows(pair: Pair) -> list[SummaryRow]:
    rows = []
    for label, samples, name, unit in (
        ("prefill", "prefill_tps", "prefill", "tok/s"),
        ("decode", "decode_tps", "decode", "tok/s"),
        ("time to first token", "ttft_ms", "ttft", "ms"),
    ):
        shown = [
            write.interval(run["summary"].get(samples) if run else None, 1, unit)
            for run in (pair.run_before, pair.run_after)
        ]
        rows.append(
            SummaryRow(pair.target, label, shown[0], shown[1], _speedup(pair.speedup, name))
        )
    for label, key, unit in (
        ("peak memory (resident)", "peak_rss_mib", "MiB"),
        ("energy per token", "j_per_token", "J"),
    ):
        values = [_get(run, key) for run in (pair.run_before, pair.run_after)]
        shown = [
            NOT_MEASURED if value is None else f"{write.number(value)} {unit}" for value in values
        ]
        change = f"{100 * (values[1] / values[0] - 1):+.1f} %" if values[0] and values[1] else ""
        rows.append(SummaryRow(pair.target, label, shown[0], shown[1], change))
    return rows


def _speedup(speedup: Mapping[str, Any] | None, name: str) -> str:
    if speedup is None:
        return NOT_MEASURED
    part, n = speedup[name], speedup["n"]
    low, high = write.fixed(part["low"], 2), write.fixed(part["high"], 2)
    sure = write.sureness(speedup["confidence"], n)
    shown = f"{low} to {high}, {sure}" if n > 1 else "n 1"
    ideal = f"; ideal {write.ratio(part['ideal'])}" if part["ideal"] is not None else ""
    return f"{write.ratio(part['median'])} ({shown}{ideal})"


def _mean(side: Mapping[str, Any] | None, key: str, error: str, n: int | None) -> str:
    value = _get(side, key)
    return write.spread(value, _get(side, error), n, write.fixed(value, 3))


def _get(side: Mapping[str, Any] | None, key: str) -> float | None:
    return None if side is None else side.get(key)
