"""The sections of the report: each a function of the report that gives blocks, or None for nothing.

What was not measured is said here, in the section; None is for what was not part of the run. The
table SECTIONS of the registry names them in the order in which they stand; adding one is a function
in any module and one row there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from clp_edge.records import Report, RunRecord, SearchRecord
from clp_edge.registry import SECTIONS
from clp_edge.report import format as write
from clp_edge.report.blocks import Block, Heading, Items, Plot, Series, Table, Text
from clp_edge.report.facts import all_warnings, sequences
from clp_edge.report.format import NOT_MEASURED
from clp_edge.report.summary import summary_block

Section = Callable[[Report], Sequence[Block] | None]

# How many candidate windows are listed; all of them are in report.json.
WINDOWS_SHOWN = 8
STATISTICS_NOTE = (
    "Medians, each between two order statistics that hold the true one with 95 % confidence or "
    "more, unless less is shown; the change is the median of the per-round ratios. "
    "Above 1 is faster, for the time to first token too."
)
MEMORY_NOTE = (
    "Peak memory is the peak resident set of the process that ran the file. Weights are mapped "
    "from the file, so the pages it touched are counted, and are page cache at the same time."
)


def report_blocks(report: Report) -> Iterator[Block]:
    """The blocks of every registered section, in the order of the registry."""
    for row in SECTIONS:
        section: Section = SECTIONS.load(row.name)
        yield from section(report) or ()


def warnings(report: Report) -> Sequence[Block] | None:
    """What to mind."""
    texts = all_warnings(report)
    return [Heading("Warnings"), Items(tuple(texts))] if texts else None


def summary(report: Report) -> Sequence[Block]:
    """The one table, and what quality was measured on."""
    return [Heading("Before and after"), summary_block(report), Text(_evaluation(report))]


def _evaluation(report: Report) -> str:
    evaluation = report.evaluation
    if evaluation is None:
        return "Quality was not measured."
    return (
        f"Quality on {evaluation.text} (sha256 {evaluation.sha256[:12]}): "
        f"{evaluation.tokens:,} tokens in {sequences(report)} sequences of "
        f"{evaluation.sequence_length}, "
        f"{evaluation.removed_as_leaked} removed because they were in the calibration text. "
        "± is one standard error over sequences. KL is to the dense model before quantization."
    )


def search(report: Report) -> Sequence[Block] | None:
    """Which blocks went, with the receipts."""
    found = report.search
    if found is None:
        return None
    gone = write.blocks(found.segments, found.dropped, report.model.blocks)
    facts = [
        f"{gone}: chosen by {found.method}",
        f"judged by {found.criterion or 'nothing'} KL",
        f"regret {write.number(found.regret)}",
        f"stability {write.number(found.stability)}",
        f"{write.number(found.forward_equivalents)} forward equivalents",
        f"{write.fixed(found.seconds, 1)} s",
    ]
    return [
        Heading("Which blocks went"),
        Text(", ".join(facts) + "."),
        *_windows(found),
        *_search_plots(found),
    ]


def _windows(found: SearchRecord) -> list[Block]:
    judged = []
    for window in found.windows:
        kl = window.kl_healed if found.criterion == "healed" else window.kl_raw
        if kl is not None:
            judged.append((kl, window))
    if not judged:
        return []
    best = sorted(judged, key=lambda one: one[0])[:WINDOWS_SHOWN]
    rows = tuple(
        (
            f"{window.first}-{window.last}",
            write.fixed(window.kl_raw, 3),
            write.fixed(window.kl_healed, 3),
        )
        for _, window in best
    )
    return [
        Table(("blocks", "KL of the cut", "KL after the refit"), rows),
        Text(f"The best {len(best)} of {len(judged)} windows; all are in report.json."),
    ]


def _search_plots(found: SearchRecord) -> Iterator[Plot]:
    windows = sorted(found.windows, key=lambda window: window.first)
    if len(windows) > 1:
        starts = tuple(float(window.first) for window in windows)
        curves = {
            "KL of the cut": tuple(window.kl_raw for window in windows),
            "KL after the refit": tuple(window.kl_healed for window in windows),
        }
        series = tuple(
            Series(name, starts, values)
            for name, values in curves.items()
            if any(value is not None for value in values)
        )
        yield Plot("KL of every window", "first block", "KL to dense (nats)", series, "points")
    if found.gate is not None and found.gate.paths:
        paths = tuple(
            Series(f"start {number}", tuple(float(step) for step in range(len(path))), path)
            for number, path in enumerate(found.gate.paths, start=1)
        )
        yield Plot("Where the gate went", "step", "position (blocks)", paths)


def heal(report: Report) -> Sequence[Block] | None:
    """How the cut was mended."""
    mended = report.heal
    if mended is None:
        return None
    trained = ", ".join(str(block) for block in mended.trained_blocks) or "none"
    rows = (
        ("cut", write.fixed(mended.kl_cut, 3)),
        ("closed-form refit", write.fixed(mended.kl_refit, 3)),
        ("tuned", write.fixed(mended.kl_tuned, 3)),
    )
    blocks: list[Block] = [
        Heading("How the cut was mended"),
        Text(
            f"Method: {mended.method}; blocks trained (ids of the dense model): {trained}; "
            f"{write.fixed(mended.seconds, 1)} s."
        ),
        Table(("step", "KL to dense"), rows),
    ]
    if mended.history:
        steps = tuple(float(point.step) for point in mended.history)
        kl = tuple(point.kl for point in mended.history)
        line = Series("held-back KL", steps, kl)
        blocks.append(Plot("Tuning", "step", "KL to dense (nats)", (line,)))
    return blocks


def files(report: Report) -> Sequence[Block] | None:
    """What was written for the device."""
    if not report.artifacts:
        return None
    rows = tuple(
        (
            artifact.name,
            artifact.variant,
            artifact.target,
            artifact.path,
            f"{write.mib(artifact.bytes)} ({write.megabytes(artifact.bytes)})",
            write.fixed(artifact.bits_per_weight, 2),
            "yes" if artifact.verified else "NO",
            artifact.sha256[:12],
        )
        for artifact in report.artifacts
    )
    header = ("file", "what", "target", "path", "size", "bits/weight", "verified", "sha256")
    return [Heading("Files"), Table(header, rows)]


def speed(report: Report) -> Sequence[Block]:
    """Every run of the bench, and how it was taken."""
    bench = report.bench
    if bench is None:
        return [Heading("Speed"), Text("The speed was not measured.")]
    settings, device = bench.settings, bench.device
    header = (
        "file",
        "runtime",
        "prompt+generate at depth",
        "prefill tok/s",
        "decode tok/s",
        "first token ms",
        "load ms",
        "peak memory MiB",
        "read per token",
        "share of bandwidth",
    )
    bandwidth = settings.memory_bandwidth_gb_s
    facts = [
        str(device.get("name") or device.get("cpu_model") or "unknown device"),
        f"{settings.threads} threads",
        f"batch {settings.batch}",
        f"{settings.warmup_rounds} warm-up rounds, then {settings.rounds} that count, "
        "all files in each round in a random order",
        f"power mode {settings.power_mode or 'unknown'}",
        "memory bandwidth "
        + (NOT_MEASURED if bandwidth is None else f"{write.fixed(bandwidth, 1)} GB/s"),
    ]
    return [
        Heading("Speed"),
        Text("; ".join(facts) + "."),
        Table(header, tuple(_run_row(run) for run in bench.runs)),
        *_speed_plot(bench.runs),
        Text(f"{STATISTICS_NOTE} {MEMORY_NOTE}"),
    ]


def _run_row(run: RunRecord) -> tuple[str, ...]:
    return (
        run.artifact,
        f"{run.runtime} {run.runtime_version}, {run.backend}",
        f"{run.test.prompt}+{run.test.generate} at {run.test.depth}",
        write.interval(run.summary.get("prefill_tps")),
        write.interval(run.summary.get("decode_tps")),
        write.interval(run.summary.get("ttft_ms")),
        write.fixed(run.load_ms, 0),
        write.fixed(run.peak_rss_mib, 1),
        write.mib(run.bytes_per_token),
        write.percent(run.mbu),
    )


def _speed_plot(runs: Sequence[RunRecord]) -> Iterator[Plot]:
    series = tuple(
        Series(
            run.artifact,
            tuple(float(number) for number in range(1, len(run.decode_tps) + 1)),
            run.decode_tps,
        )
        for run in runs
        if run.status == "ok"
    )
    if series:
        yield Plot("Decode, round by round", "round", "tok/s", series, "points")


def samples(report: Report) -> Sequence[Block] | None:
    """The same prompts, continued by both sides."""
    if not report.samples:
        return None
    blocks: list[Block] = [Heading("The same prompt, before and after")]
    for sample in report.samples:
        blocks += [
            Text("", lead="Prompt"),
            Text(sample.prompt, style="quote"),
            Text(f"({sample.dense_by})", lead="Dense"),
            Text(sample.dense, style="quote"),
            Text(f"({sample.healed_by})", lead="Pruned"),
            Text(sample.healed, style="quote"),
        ]
    return blocks


def costs(report: Report) -> Sequence[Block] | None:
    """Seconds and memory of every stage, and what it ran on."""
    if not report.seconds:
        return None
    rows = tuple(
        (stage, f"{seconds:,.1f}", write.fixed(report.peak_memory_mib.get(stage), 0))
        for stage, seconds in report.seconds.items()
    )
    blocks: list[Block] = [
        Heading("What it cost"),
        Table(("stage", "seconds", "peak memory MiB"), rows),
    ]
    environment = [f"{key} {value}" for key, value in report.environment.items()]
    if environment:
        told = f"clp-edge {report.version}, seed {report.seed}; {', '.join(environment)}."
        blocks.append(Text(told))
    return blocks
