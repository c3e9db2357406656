"""report.json, schema 1: put together, read, checked; the one source of everything rendered.

Its shape is `records.Report`; here is what the shape alone does not show. A null means "not
measured", never 0.

>>> parse_report(b"{}")                                                     # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
clp_edge.report.document.ReportError: the report is not of schema 1: Object missing required...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import clp_edge
from clp_edge.errors import ClpEdgeError
from clp_edge.records import (
    SCHEMA,
    ArtifactRecord,
    BenchRecord,
    ContextMemoryRecord,
    EvaluationRecord,
    FrontierRecord,
    GateVerdictRecord,
    GoalRecord,
    HealRecord,
    ModelRecord,
    QualityRecord,
    RecordError,
    Report,
    SampleRecord,
    SearchRecord,
    TriesRecord,
    decode,
    encode,
)
from clp_edge.report.verdict import verdict


class ReportError(ClpEdgeError):
    """A report departs from the contract."""


def build_report(
    *,
    command: str,
    model: ModelRecord,
    seed: int,
    evaluation: EvaluationRecord | None = None,
    search: SearchRecord | None = None,
    heal: HealRecord | None = None,
    quality: Mapping[str, QualityRecord] | None = None,
    artifacts: Sequence[ArtifactRecord] = (),
    bench: BenchRecord | None = None,
    seconds: Mapping[str, float] | None = None,
    peak_memory_mib: Mapping[str, float | None] | None = None,
    environment: Mapping[str, Any] | None = None,
    samples: Sequence[SampleRecord] = (),
    warnings: Sequence[str] = (),
    quality_gate: GateVerdictRecord | None = None,
    tries: TriesRecord | None = None,
    goal: GoalRecord | None = None,
    frontier: FrontierRecord | None = None,
    context_memory: Mapping[str, ContextMemoryRecord] | None = None,
) -> Report:
    """Put the parts together and add the verdict.

    Raises ReportError where a part departs from the contract. The result holds what a reader of
    the file gets: NaN and infinity are None, the free objects are plain JSON.
    """
    report = validate(
        Report(
            schema=SCHEMA,
            command=command,
            version=clp_edge.__version__,
            model=model,
            seed=seed,
            verdict="",
            evaluation=evaluation,
            search=search,
            heal=heal,
            quality=dict(quality or {}),
            artifacts=tuple(artifacts),
            bench=bench,
            seconds=dict(seconds or {}),
            peak_memory_mib=dict(peak_memory_mib or {}),
            environment=dict(environment or {}),
            samples=tuple(samples),
            warnings=tuple(warnings),
            quality_gate=quality_gate,
            tries=tries,
            goal=goal,
            frontier=frontier,
            context_memory=dict(context_memory or {}),
        )
    )
    return replace(report, verdict=verdict(report))


def parse_report(document: bytes | str) -> Report:
    """The report that a report.json holds. Raises ReportError, naming the place of a departure."""
    try:
        report = decode(document, Report)
    except RecordError as error:
        raise _departs(str(error.__cause__ or error)) from error
    found = list(_contradictions(report))
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise _departs(f"{', '.join(found[:5])}{more}")
    return report


def validate(report: Report) -> Report:
    """The report as a reader of its file gets it. Raises ReportError unless it keeps the contract.

    A record does not check its values when it is made, so it goes through the codec and back.
    """
    try:
        document = encode(report)
    except RecordError as error:
        raise _departs(str(error)) from error
    return parse_report(document)


def _departs(why: str) -> ReportError:
    return ReportError(
        f"the report is not of schema {SCHEMA}: {why}",
        "if clp-edge wrote it, this is a mistake in clp-edge: please report it",
    )


def _contradictions(report: Report) -> Iterator[str]:
    """What the shape alone does not show."""
    beside = report.frontier.artifacts if report.frontier is not None else ()
    names = [artifact.name for artifact in (*report.artifacts, *beside)]
    if len(set(names)) != len(names):
        yield "$.artifacts: two artifacts have the same name"
    search = report.search
    if search is not None and search.segments:
        cut = [block for span in search.segments for block in range(span.first, span.last + 1)]
        if sorted(cut) != sorted(search.dropped):
            yield "$.search.dropped does not list the blocks of $.search.segments"
    if report.bench is not None:
        yield from _bench_contradictions(report.bench)


def _bench_contradictions(bench: BenchRecord) -> Iterator[str]:
    measured = set()
    for index, run in enumerate(bench.runs):
        where = f"$.bench.runs[{index}]"
        if run.status != "ok":
            if not run.reason:
                yield f"{where} is {run.status} without a reason"
            continue
        measured.add(run.artifact)
        samples = {
            "prefill_tps": run.prefill_tps,
            "decode_tps": run.decode_tps,
            "ttft_ms": run.ttft_ms,
        }
        if len({len(values) for values in samples.values()}) != 1:
            yield f"{where} has lists of different lengths"
        if missing := [name for name in samples if name not in run.summary]:
            yield f"{where}.summary lacks {', '.join(missing)}"
    for index, pair in enumerate(bench.speedup):
        for side, artifact in (("before", pair.before), ("after", pair.after)):
            if artifact not in measured:
                yield f"$.bench.speedup[{index}].{side} was not measured: {artifact!r}"
