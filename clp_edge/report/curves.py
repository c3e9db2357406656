"""The report's plots: which numbers of the record go into which picture.

Each function gives plots, or none where the record has no numbers for them; `plots` draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clp_edge.records import (
    ArtifactRecord,
    GateRecord,
    HealRecord,
    QualityRecord,
    Report,
    RungRecord,
    RunRecord,
    SearchRecord,
    WindowRecord,
)
from clp_edge.report.blocks import Block, Mark, Plot, Series
from clp_edge.report.latency import latency_blocks

KL = "KL to dense (nats)"
KINDS = ("KL of the cut", "KL after the refit")


def search_plots(found: SearchRecord) -> Iterator[Plot]:
    """The KL of every window with the chosen one, where the gate went, and its loss."""
    if len(found.windows) > 1:
        lengths = sorted({window.last - window.first + 1 for window in found.windows})
        series: list[Series] = []
        for length in lengths:
            windows = [one for one in found.windows if one.last - one.first + 1 == length]
            name = f", {length} blocks" if len(lengths) > 1 else ""
            series += _window_series(sorted(windows, key=lambda one: one.first), name)
        yield Plot("KL of every window", "first block", KL, tuple(series), marks=_chosen(found))
    if found.gate is not None:
        yield from _gate_plots(found.gate)


def _window_series(windows: Sequence[WindowRecord], suffix: str) -> Iterator[Series]:
    starts = tuple(float(window.first) for window in windows)
    raw = tuple(window.kl_raw for window in windows)
    healed = tuple(window.kl_healed for window in windows)
    if any(value is not None for value in raw):
        errors = [window.kl_raw_se for window in windows]
        yield Series(KINDS[0] + suffix, starts, raw, *around(raw, errors))
    if any(value is not None for value in healed):
        yield Series(KINDS[1] + suffix, starts, healed)


def _chosen(found: SearchRecord) -> tuple[Mark, ...]:
    return tuple(
        Mark(f"chosen: blocks {part.first}-{part.last}", part.first, part.first)
        for part in found.segments
    )


def _gate_plots(gate: GateRecord) -> Iterator[Plot]:
    names = [f"start {number}" for number in range(1, len(gate.paths) + 1)]
    paths = [Series(name, _steps(path), path) for name, path in zip(names, gate.paths, strict=True)]
    if paths:
        first, last = gate.choice.first, gate.choice.last
        mark = Mark(f"the gate's choice: blocks {first}-{last}", first, first, axis="y")
        yield Plot("Where the gate went", "step", "position (blocks)", tuple(paths), marks=(mark,))
    losses = [
        Series(f"start {number}", _steps(loss), loss)
        for number, loss in enumerate(gate.losses, start=1)
        if loss
    ]
    if losses:
        yield Plot("KL under the soft gate", "step", KL, tuple(losses))


def _steps(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(step) for step in range(len(values)))


def heal_plots(mended: HealRecord) -> Iterator[Plot]:
    """Held-back KL over the steps of every rung that trains, and rung by rung."""
    lines = [_history(rung) for rung in mended.rungs if rung.facts.get("history")]
    if not lines and mended.history:
        steps = tuple(float(point.step) for point in mended.history)
        lines = [Series("held-back KL", steps, tuple(point.kl for point in mended.history))]
    if lines:
        yield Plot("Tuning", "step of the rung", KL, tuple(lines))
    if mended.rungs:
        kept = {True: "", False: "\n(not kept)"}
        names = ("cut", *(rung.name + kept[rung.kept] for rung in mended.rungs))
        kl_after = (mended.rungs[0].kl_before, *(rung.kl_after for rung in mended.rungs))
        line = Series("held-back KL", tuple(float(x) for x in range(len(names))), kl_after)
        yield Plot("Rung by rung", "after", KL, (line,), ticks=names)


def _history(rung: RungRecord) -> Series:
    points = rung.facts["history"]
    steps = tuple(float(point["step"]) for point in points)
    return Series(f"held-back KL, {rung.name}", steps, tuple(point["kl"] for point in points))


def speed_plots(runs: Sequence[RunRecord]) -> Iterator[Block]:
    """Decode of each file in every round, against its bytes, and token by token."""
    done = [run for run in runs if run.status == "ok"]
    several = len({run.test for run in done}) > 1
    names = [f"{run.artifact}, {run.test.name}" if several else run.artifact for run in done]
    series = tuple(
        Series(
            name,
            tuple(float(number) for number in range(1, len(run.decode_tps) + 1)),
            run.decode_tps,
        )
        for name, run in zip(names, done, strict=True)
    )
    if series:
        yield Plot("Decode, round by round", "round", "tok/s", series, "points")
    yield from _bytes_plot(done)
    yield from latency_blocks(runs)


def _bytes_plot(done: Sequence[RunRecord]) -> Iterator[Plot]:
    """Decode against what a token reads, below the ceiling that the memory's bandwidth sets."""
    sized = [(run, run.bytes_per_token / 2**20) for run in done if run.bytes_per_token is not None]
    if len(sized) < 2:
        return
    series = []
    for name in dict.fromkeys(run.artifact for run, _ in sized):
        mine = [(run.summary["decode_tps"], x) for run, x in sized if run.artifact == name]
        series.append(
            Series(
                name,
                tuple(x for _, x in mine),
                tuple(speed.median for speed, _ in mine),
                tuple(speed.low for speed, _ in mine),
                tuple(speed.high for speed, _ in mine),
            )
        )
    bound = [(x, run.ideal_decode_tps) for run, x in sized if run.ideal_decode_tps is not None]
    if bound:
        x, y = zip(*sorted(set(bound)), strict=True)
        series.append(Series("ceiling by memory bandwidth", x, y))
    yield Plot("Decode against bytes", "read per token (MiB)", "tok/s", tuple(series), "points")


def tradeoff_plots(report: Report) -> Iterator[Plot]:
    """Quality of every file against its size and its speed, where two files or more have both."""
    judged = [
        (artifact, quality)
        for artifact in report.artifacts
        if (quality := report.quality.get(artifact.name)) is not None and quality.kl is not None
    ]
    runs = [run for run in report.bench.runs if run.status == "ok"] if report.bench else []
    sizes = [(one, quality, one.bytes / 2**20) for one, quality in judged]
    measured = {
        # Of several tests the first one counts.
        metric: {run.artifact: run.summary[metric].median for run in reversed(runs)}
        for metric in ("decode_tps", "ttft_ms")
    }
    speeds, waits = (
        [(one, quality, found[one.name]) for one, quality in judged if one.name in found]
        for found in measured.values()
    )
    for title, axis, points in (
        ("KL against size", "file size (MiB)", sizes),
        ("KL against speed", "decode (tok/s)", speeds),
        ("KL against time to first token", "first token (ms)", waits),
    ):
        if len(points) > 1:
            series = tuple(_point(artifact, quality, x) for artifact, quality, x in points)
            yield Plot(title, axis, KL, series, "points")


def _point(artifact: ArtifactRecord, quality: QualityRecord, x: float) -> Series:
    values = (quality.kl,)
    return Series(artifact.name, (x,), values, *around(values, [quality.kl_se]))


def around(
    values: Sequence[float | None], errors: Sequence[float | None]
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Values less and plus one standard error; empty where no error is known."""
    if all(error is None for error in errors):
        return (), ()
    pairs = list(zip(values, errors, strict=True))
    low = tuple(None if v is None or e is None else v - e for v, e in pairs)
    high = tuple(None if v is None or e is None else v + e for v, e in pairs)
    return low, high
