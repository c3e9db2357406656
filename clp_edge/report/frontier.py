"""Dense and cut model at several types: quality against bytes and speeds, and who is on the front.

The honest question at equal bytes (PITFALLS 23): a cut is held against quantizing harder. The
sections `frontier` and `goal` of the report, and the plots of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clp_edge.records import ChoiceRecord, GoalRecord, Report
from clp_edge.report import format as write
from clp_edge.report.aims import (
    AIMS,
    AXES,
    PREFILL,
    Aim,
    Judged,
    Measured,
    all_files,
    front,
    fronts,
    judged,
    words_of,
)
from clp_edge.report.blocks import Block, Heading, Items, Plot, Series, Table, Text

KL = "KL to dense (nats)"
RATIO = "perplexity over dense"
SIDES = (("dense", "dense"), ("healed", "cut and healed"))
# axis -> (title, label, units of the figure in one of the plot's)
PLOTTED: tuple[tuple[Aim, str, str, float], ...] = (
    (AIMS["bytes"], "bytes", "file size (MB)", 1e6),
    (AIMS["decode"], "decode speed", "decode (tok/s)", 1.0),
    (PREFILL, "prefill speed", "prefill (tok/s)", 1.0),
)
NOTE = (
    "A file is on a front unless another is no worse in KL and in that figure and better in one. "
    "All files ran in the same rounds of one bench. A dense file is called better only where its "
    "KL is no more and its gain is beyond the noise (the whole 95 % interval; bytes and memory are "
    "exact); it matches the cut where its KL is no more and the cut does not surely beat it."
)
FLAGS = {
    "--max-bytes": (write.megabytes, "at most", "the size of the file"),
    "--min-speedup": (write.ratio, "at least", "decode over the dense file"),
    "--min-tps": (lambda value: write.fixed(value, 1, "tok/s"), "at least", "decode"),
}


def frontier(report: Report) -> Sequence[Block] | None:
    """Every file at every type, the fronts, each aim's judgement, and the choice."""
    found = report.frontier
    if found is None:
        return None
    files = all_files(report)
    blocks: list[Block] = [Heading("Dense and pruned at equal bytes")]
    if found.choice is not None:
        blocks += _choice(found.choice)
    on = fronts(files)
    kept = {one.name for one in report.artifacts} | set(found.kept)
    header = (
        "file",
        "size",
        KL,
        RATIO,
        "decode",
        "prefill",
        "first token",
        "memory at context",
        "on the front of",
        "file kept",
    )
    rows = tuple(_row(one, on, one.name in kept) for one in files)
    blocks += [Table(header, rows), *frontier_plots(files)]
    blocks += [Items(found.failures)] if found.failures else []
    gone = len(found.artifacts) - len(found.kept)
    if gone:
        blocks.append(
            Text(
                f"{gone} files were written, proved and measured for this comparison alone and "
                "then deleted; --keep-frontier keeps them."
            )
        )
    return [*blocks, Text(NOTE), *_aims(files)]


def _choice(choice: ChoiceRecord) -> list[Block]:
    why = f"{choice.why}. The quality asked for: {choice.bar}."
    return [Text(f"{choice.chosen or 'nothing'}", lead=f"--aim {choice.aim}:", style="strong"),
            Text(f"{why[:1].upper()}{why[1:]}")]  # fmt: skip


def _row(one: Measured, on: dict[str, tuple[str, ...]], kept: bool) -> tuple[str, ...]:
    quality, run = one.quality, one.run
    summary = run.summary if run is not None else {}
    fixed = [write.fixed(quality.kl if quality else None, 4)]
    if quality is not None and quality.kl_se is not None and quality.kl is not None:
        fixed[0] += f" ± {write.number(quality.kl_se, 2)}"
    memory = one.memory
    at = f" at {memory.context:,}" if memory is not None else ""
    return (
        one.name,
        write.megabytes(one.artifact.bytes),
        fixed[0],
        _ratio(one),
        write.interval(summary.get("decode_tps")),
        write.interval(summary.get("prefill_tps")),
        write.interval(summary.get("ttft_ms"), 1, "ms"),
        write.megabytes(memory.total if memory is not None else None) + at,
        ", ".join(aim.words for aim in AXES if one.name in on.get(aim.name, ())) or "none",
        "yes" if kept else "deleted",
    )


def _ratio(one: Measured) -> str:
    quality = one.quality
    if quality is None or quality.ppl_ratio is None:
        return write.NOT_MEASURED
    if quality.ppl_ratio_low is None or quality.ppl_ratio_high is None:
        return write.fixed(quality.ppl_ratio, 3)
    ends = f"{quality.ppl_ratio_low:.3f} to {quality.ppl_ratio_high:.3f}"
    return f"{quality.ppl_ratio:.3f} ({ends})"


def frontier_plots(files: Sequence[Measured]) -> Iterator[Plot]:
    """KL, and the perplexity ratio, against bytes, decode and prefill, each with its front."""
    for label in (KL, RATIO):
        for aim, what, axis, unit in PLOTTED:
            points = [
                (one, value / unit, height)
                for one in files
                if (value := aim.value(one)) is not None
                and (height := _height(one, label)) is not None
            ]
            if len(points) < 2:
                continue
            best = front([(-x if aim.larger else x, y) for _, x, y in points])
            line = sorted((points[i][1], points[i][2]) for i in best)
            places, heights = tuple(x for x, _ in line), tuple(y for _, y in line)
            # first, so that the files are drawn over it
            series = (
                Series("Pareto front", places, heights, style="line"),
                *_sides(points, label),
            )
            kind = "KL" if label == KL else "Perplexity ratio"
            yield Plot(f"{kind} against {what}", axis, label, series, "points")


def _height(one: Measured, label: str) -> float | None:
    if one.quality is None:
        return None
    return one.quality.kl if label == KL else one.quality.ppl_ratio


def _sides(points: Sequence[tuple[Measured, float, float]], label: str) -> Iterator[Series]:
    for variant, name in SIDES:
        mine = [point for point in points if point[0].artifact.variant == variant]
        if not mine:
            continue
        ends = [_ends(one, label) for one, _, _ in mine]
        known = any(low is not None for low, _ in ends)
        yield Series(
            name,
            tuple(x for _, x, _ in mine),
            tuple(y for _, _, y in mine),
            tuple(low for low, _ in ends) if known else (),
            tuple(high for _, high in ends) if known else (),
            labels=tuple(one.name.removeprefix(f"{variant} ") for one, _, _ in mine),
        )


def _ends(one: Measured, label: str) -> tuple[float | None, float | None]:
    """One standard error around a KL; the paired 95 % interval of a ratio."""
    quality = one.quality
    if quality is None:
        return None, None
    if label == RATIO:
        return quality.ppl_ratio_low, quality.ppl_ratio_high
    if quality.kl is None or quality.kl_se is None:
        return None, None
    return quality.kl - quality.kl_se, quality.kl + quality.kl_se


def _aims(files: Sequence[Measured]) -> list[Block]:
    """What each file of the cut model is worth in each aim."""
    rows: list[tuple[str, ...]] = []
    for one in files:
        if one.artifact.variant == "healed":
            rows.append((one.name,))
            rows += [_aim_row(one, found) for found in judged(one, files)]
    if not rows:
        return []
    header = ("aim", "over the dense file of its type", "a dense file as good", "so")
    return [Heading("Which aim the cut serves", 3), Table(header, tuple(rows))]


def _aim_row(cut: Measured, found: Judged) -> tuple[str, ...]:
    rival = "none"
    if found.rival is not None and found.rival_gain is not None:
        rival = (
            f"{found.rival.name} ({found.rival_gain.words()}; KL {write.number(found.rival.kl)} "
            f"against {write.number(cut.kl)})"
        )
    elif not found.compared:
        rival = "not compared"
    so = {
        "served": "the cut serves it",
        "rival": "the dense file serves it better",
        "matched": "not surely better than the dense file",
        "not better": "not surely better",
        "not measured": write.NOT_MEASURED,
    }[found.word]
    gain = found.gain.words() if found.gain is not None else write.NOT_MEASURED
    return (words_of(found.aim, cut), gain, rival, so)


def goal(report: Report) -> Sequence[Block] | None:
    """The size or speed that was asked for: foretold, measured, met or not."""
    asked = report.goal
    if asked is None:
        return None
    show, sign, what = FLAGS[asked.flag]
    measured = show(asked.measured)
    if asked.low is not None and asked.high is not None and asked.low != asked.high:
        measured += f" ({show(asked.low)} to {show(asked.high)})"
    row = (
        f"{what}: {sign} {show(asked.wanted)}",
        show(asked.predicted),
        measured,
        asked.file or "none",
        asked.met,
    )
    blocks: list[Block] = [
        Heading("The size or speed asked for"),
        Text(asked.met, lead=f"{asked.flag}:", style="strong"),
        Table(("asked for", "predicted", "measured", "of the worst file", "so"), (row,)),
    ]
    return [*blocks, Text(asked.note)] if asked.note else blocks


def goal_words(asked: GoalRecord) -> str:
    """For the verdict: what was asked for and whether it holds."""
    show, sign, _ = FLAGS[asked.flag]
    wanted = f"{asked.flag} ({sign} {show(asked.wanted)})"
    if asked.measured is None:
        return f"{wanted} was not measured"
    ends = ""
    if asked.low is not None and asked.high is not None and asked.low != asked.high:
        ends = f", {show(asked.low)} to {show(asked.high)}"
    said = {
        "met": "is met",
        "not met": "is NOT met",
        "undecided": "is within the noise of what was measured",
        "not measured": "was not measured",
    }[asked.met]
    return f"{wanted} {said} ({show(asked.measured)}{ends})"
