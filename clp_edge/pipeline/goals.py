"""Whether --max-bytes, --min-speedup or --min-tps was met: what was foretold beside the measured.

The count of blocks followed from a prediction (`sizing.py`). Of several files the worst one counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from clp_edge.bench.ceiling import mean_decode_depth
from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.sizing import cached_bytes
from clp_edge.records import ArtifactRecord, BenchRecord, GoalRecord
from clp_edge.records.judging import Met


def met(wanted: float, low: float, high: float, *, sure: bool = True) -> Met:
    """Whether at least `wanted` was measured, by the interval of it.

    sure: the interval attains 95 %; below that nothing is decided.

    >>> met(1.25, 1.26, 1.30), met(1.25, 1.20, 1.24), met(1.25, 1.2, 1.3)
    ('met', 'not met', 'undecided')
    """
    if not sure:
        return "undecided"
    return "met" if low >= wanted else "not met" if high < wanted else "undecided"


def goal_of(
    config: CompressConfig,
    plan: Plan,
    artifacts: Sequence[ArtifactRecord],
    bench: BenchRecord | None,
) -> GoalRecord | None:
    """What was asked for, foretold and measured; None where nothing was."""
    ours = [one for one in artifacts if one.variant == "healed"]
    cut = config.cut
    if cut.byte_limit is not None:
        worst = max(ours, key=lambda one: one.bytes)
        size, limit = float(worst.bytes), float(cut.byte_limit)
        predicted = float(max(p.pruned.predicted_bytes for p in plan.targets))
        done: Met = "met" if size <= limit else "not met"
        return GoalRecord("--max-bytes", limit, predicted, size, size, size, worst.name, done)
    names = {one.name for one in ours}
    if cut.min_speedup is not None:
        predicted = min(
            (p.dense.read_bytes or p.dense.predicted_bytes)
            / (p.pruned.read_bytes or p.pruned.predicted_bytes)
            for p in plan.targets
        )
        note = "Predicted: the ratio of the weight bytes that one token reads."
        pairs = [one for one in (bench.speedup if bench else ()) if one.after in names]
        unmeasured = GoalRecord(
            "--min-speedup",
            cut.min_speedup,
            predicted,
            None,
            None,
            None,
            None,
            "not measured",
            note,
        )
        if {one.after for one in pairs} != names:
            return unmeasured
        slow = min(pairs, key=lambda one: one.decode.median)
        ratio, sure = slow.decode, slow.confidence >= 0.95
        return GoalRecord(
            "--min-speedup",
            cut.min_speedup,
            predicted,
            ratio.median,
            ratio.low,
            ratio.high,
            slow.after,
            met(cut.min_speedup, ratio.low, ratio.high, sure=sure),
            note,
        )
    if cut.min_tps is not None:
        note, predicted_tps = "", None
        if plan.bandwidth is not None:
            depth = mean_decode_depth(config.bench.generate)
            reads = max(
                (p.pruned.read_bytes or p.pruned.predicted_bytes)
                + cached_bytes(plan.config, plan.blocks - plan.count, depth)
                for p in plan.targets
            )
            predicted_tps = plan.bandwidth.gb_per_s * 1e9 / reads
            note = (
                f"Predicted: the ceiling, {plan.bandwidth.gb_per_s:.1f} GB/s of measured memory "
                f"bandwidth over {reads / 1e6:.1f} MB that one token reads. What is measured lies "
                "below it by what the runtime does not use of the bandwidth."
            )
        runs = [
            run for run in (bench.runs if bench else ()) if run.artifact in names and run.summary
        ]
        if {run.artifact for run in runs} != names:
            return GoalRecord(
                "--min-tps", cut.min_tps, predicted_tps, None, None, None, None, "not measured",
                note,
            )  # fmt: skip
        run = min(runs, key=lambda one: one.summary["decode_tps"].median)
        found = run.summary["decode_tps"]
        sure = found.confidence is None or found.confidence >= 0.95
        return GoalRecord(
            "--min-tps",
            cut.min_tps,
            predicted_tps,
            found.median,
            found.low,
            found.high,
            run.artifact,
            met(cut.min_tps, found.low, found.high, sure=sure),
            note,
        )
    return None
