"""The sections of the report: each a function of the report that gives blocks, or None for nothing.

What was not measured is said here, in the section; None is for what was not part of the run. The
table SECTIONS of the registry names them in the order in which they stand; adding one is a function
in any module and one row there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clp_edge.bench.costs import lines as costs_of_bench
from clp_edge.records import HealRecord, Report, RungRecord, RunRecord, SearchRecord
from clp_edge.registry import SECTIONS
from clp_edge.report import format as write
from clp_edge.report.blocks import Answers, Block, Heading, Items, Table, Text
from clp_edge.report.cards import cards
from clp_edge.report.curves import heal_plots, search_plots, speed_plots, tradeoff_plots
from clp_edge.report.facts import all_warnings, sequences
from clp_edge.report.format import NOT_MEASURED
from clp_edge.report.frontier import frontier, goal
from clp_edge.report.judged import gate, sanity, tasks, tries
from clp_edge.report.summary import summary_block

__all__ = [
    "cards", "costs", "environment", "files", "frontier", "gate", "goal", "heal",
    "method", "report_blocks", "samples", "sanity", "search", "speed", "summary",
    "tasks", "tradeoff", "tries", "warnings",
]  # fmt: skip

Section = Callable[[Report], Sequence[Block] | None]

# How many candidate windows are listed; all of them are in report.json.
WINDOWS_SHOWN = 8
STATISTICS_NOTE = (
    "Medians, each between two order statistics that hold the true one with 95 % confidence or "
    "more, unless less is shown; the change is the median of the per-round ratios. "
    "Above 1 is faster, for the time to first token too."
)
QUALITY_NOTE = (
    "Perplexity, KL and top-1 agreement are means over the positions of {n}, each file run by the "
    "runtime that will run it on the device, on the same token ids. ± is one standard error over "
    "sequences. The perplexity ratio is paired sequence by sequence, which makes its interval "
    "far tighter than either perplexity; the interval is a 95 % bootstrap."
)
SIZE_NOTE = (
    "Sizes are those of the files, in MiB (2^20 bytes) and MB (10^6 bytes); bits per weight are "
    'what the file holds, not what its type is called. "not measured" never means 0.'
)
MEMORY_NOTE = (
    "Peak memory is the peak resident set of the process that ran the file. Weights are mapped "
    "from the file, so the pages it touched are counted, and are page cache at the same time."
)


def report_blocks(report: Report, without: Sequence[str] = ()) -> Iterator[Block]:
    """The blocks of every registered section but `without`, in the order of the registry."""
    for row in SECTIONS:
        if row.name in without:
            continue
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
        *_changed(found),
        f"regret {write.number(found.regret)}",
        f"stability {write.number(found.stability)}",
        f"{write.number(found.forward_equivalents)} forward equivalents",
        f"{write.fixed(found.seconds, 1)} s",
    ]
    return [
        Heading("Which blocks went"),
        Text(", ".join(facts) + "."),
        *([Items(said)] if (said := tuple(_doubts(found))) else []),
        *_windows(found),
        *search_plots(found),
        *_no_gate(found),
    ]


def _doubts(found: SearchRecord) -> Iterator[str]:
    """How sure the choice is: the gap to the next best, rivals, what the search noted."""
    if found.gap is not None and found.gap_se is not None:
        gap = f"KL of the next window is {_apart(found.gap, found.gap_se)}"
        yield f"{gap}: a near tie." if found.near_tie else f"{gap}."
    if found.rivals:
        rivals = (f"{one.first}-{one.last} in {write.percent(one.wins)}" for one in found.rivals)
        yield f"Of the resamples of the sequences others won: {', '.join(rivals)}."
    if found.pair is not None:
        low, high = found.pair.segments
        two = f"{low.first}-{low.last} and {high.first}-{high.last}"
        apart = _apart(found.pair.gap, found.pair.gap_se)
        yield f"KL of two runs, {two}, is {apart} than the best single one's."
    yield from (f"{note[:1].upper()}{note[1:]}." for note in found.notes)


def _apart(gap: float, error: float | None) -> str:
    """ "0.004 ± 0.011 nats higher"; the error is paired by sequence."""
    size = write.spread(abs(gap), error, None, f"{abs(gap):.3f}")
    return f"{size} nats {'lower' if gap < 0 else 'higher'}"


def _changed(found: SearchRecord) -> list[str]:
    """What the other criterion would have chosen."""
    raw = found.raw_choice
    if raw is None:
        return []
    if raw == found.segment:
        return ["as raw KL would have chosen"]
    return [f"where raw KL would have chosen {raw.first}-{raw.last}"]


def _windows(found: SearchRecord) -> list[Block]:
    judged = []
    for window in found.windows:
        kl = window.kl_healed if found.criterion == "healed" else window.kl_raw
        if kl is None and window.kl_raw is not None:  # not among those that were refitted
            judged.append(((1, window.kl_raw), window))
        elif kl is not None:
            judged.append(((0, kl), window))
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
        Text(
            f"The best {len(best)} of {len(judged)} windows; all are in report.json."
            + _left_early(found)
        ),
    ]


def _left_early(found: SearchRecord) -> str:
    early = sum(window.sequences is not None for window in found.windows)
    return f" {early} left after the first sequences, as hopeless." if early else ""


def _no_gate(found: SearchRecord) -> list[Block]:
    if found.gate is not None and found.gate.paths:
        return []
    return [Text("The gate was not part of this search, so there is no path of it.")]


def heal(report: Report) -> Sequence[Block] | None:
    """How the cut was mended."""
    mended = report.heal
    if mended is None:
        return None
    trained = ", ".join(str(block) for block in mended.trained_blocks) or "none"
    blocks: list[Block] = [
        Heading("How the cut was mended"),
        Text(
            f"Method: {mended.method}; blocks trained (ids of the dense model): {trained}; "
            f"{write.fixed(mended.seconds, 1)} s."
        ),
    ]
    blocks += _rungs(mended) if mended.rungs else [_stages(mended)]
    blocks += heal_plots(mended)
    if not mended.history:
        blocks.append(Text("No tuning step was recorded."))
    blocks += [Items(mended.notes)] if mended.notes else []
    return blocks


def _stages(mended: HealRecord) -> Block:
    """Where no rung was climbed, or the report is from before there were rungs."""
    rows = (
        ("cut", write.fixed(mended.kl_cut, 3)),
        ("closed-form refit", write.fixed(mended.kl_refit, 3)),
        ("tuned", write.fixed(mended.kl_tuned, 3)),
    )
    return Table(("step", "KL to dense"), rows)


def _rungs(mended: HealRecord) -> list[Block]:
    cut = _with_error(mended.ratio_cut, mended.ratio_cut_se)
    start = ("cut", "", write.fixed(mended.kl_cut, 3), "", cut, "", "", "")
    rows = tuple(
        (
            rung.name,
            write.fixed(rung.kl_before, 3),
            write.fixed(rung.kl_after, 3),
            _with_error(_change(rung), rung.change_se),
            _with_error(rung.ratio, rung.ratio_se),
            write.percent(rung.recovered),
            "yes" if rung.kept else "no",
            write.fixed(rung.seconds, 1),
        )
        for rung in mended.rungs
    )
    head = (
        "rung",
        "KL before",
        "KL after",
        "change",
        "perplexity ratio",
        "lost nats recovered",
        "kept",
        "seconds",
    )
    blocks: list[Block] = [Table(head, (start, *rows))]
    if mended.held_sequences is not None:
        blocks.append(
            Text(
                f"On {mended.held_sequences} held-back sequences, with standard errors paired by "
                "sequence; the perplexity ratio is to the dense model's. The rungs are chosen by "
                "this text, so it flatters; the quality table is of other text."
            )
        )
    return blocks


def _with_error(value: float | None, error: float | None) -> str:
    return write.spread(value, error, None, write.fixed(value, 3))


def _change(rung: RungRecord) -> float | None:
    return None if rung.kl_after is None else rung.kl_after - rung.kl_before


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
        *(Text(f"{said[0].upper()}{said[1:]}.") for said in costs_of_bench(bench)),
        *speed_plots(bench.runs),
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


def samples(report: Report) -> Sequence[Block] | None:
    """The same prompts, continued by both sides."""
    if not report.samples:
        return None
    return [
        Heading("The same prompt, before and after"),
        *(
            Answers(
                sample.prompt,
                (
                    ("Dense", sample.dense_by, sample.dense),
                    *((("Healed", "healed", sample.mended),) if sample.mended else ()),
                    (
                        "Shipped" if sample.mended else "Pruned",
                        sample.healed_by,
                        sample.healed,
                    ),
                ),
            )
            for sample in report.samples
        ),
    ]


def costs(report: Report) -> Sequence[Block] | None:
    """Seconds and memory of every stage, and what it ran on."""
    if not report.seconds:
        return None
    rows = tuple(
        (stage, f"{seconds:,.1f}", write.fixed(report.peak_memory_mib.get(stage), 0))
        for stage, seconds in report.seconds.items()
    )
    return [Heading("What it cost"), Table(("stage", "seconds", "peak memory MiB"), rows)]


def tradeoff(report: Report) -> Sequence[Block] | None:
    """Every file's quality beside its size and its speed."""
    if not report.artifacts or report.frontier is not None:  # which shows these files and more
        return None
    timed = report.bench.runs if report.bench else ()
    runs = {run.artifact: run for run in reversed(timed) if run.status == "ok"}
    rows = []
    for artifact in report.artifacts:
        quality, run = report.quality.get(artifact.name), runs.get(artifact.name)
        rows.append(
            (
                artifact.name,
                write.mib(artifact.bytes),
                write.perplexity(quality.perplexity if quality else None),
                write.fixed(quality.kl if quality else None, 3),
                write.interval(run.summary.get("decode_tps") if run else None),
            )
        )
    header = ("file", "size", "perplexity", "KL to dense", "decode tok/s")
    return [
        Heading("Quality against size and speed"),
        Table(header, tuple(rows)),
        *tradeoff_plots(report),
    ]


def method(report: Report) -> Sequence[Block]:
    """How each number was taken."""
    n = sequences(report)
    told = []
    if report.quality:
        told.append(QUALITY_NOTE.replace("{n}", f"{n} sequences" if n else "the sequences"))
    if report.bench is not None:
        told += [STATISTICS_NOTE, MEMORY_NOTE]
    return [Heading("How each number was taken"), Items((*told, SIZE_NOTE))]


def environment(report: Report) -> Sequence[Block]:
    """What it ran on."""
    rows = [("clp-edge", report.version), ("seed", str(report.seed))]
    rows += [(str(key), _plain(value)) for key, value in report.environment.items()]
    return [Heading("Environment"), Table(("what", "value"), tuple(rows))]


def _plain(value: Any) -> str:
    return NOT_MEASURED if value is None else str(value)
