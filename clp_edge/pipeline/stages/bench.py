"""Bench: speed of every file, interleaved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.config import BenchConfig, CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import export
from clp_edge.progress import Progress
from clp_edge.records import BenchRecord
from clp_edge.runtimes import GpuLayers


@dataclass(frozen=True)
class Inputs:
    """Whether and how speed is measured."""

    bench: BenchConfig
    threads: int
    gpu_layers: GpuLayers = "auto"


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(config.bench, plan.threads, config.files.gpu_layers)


@dataclass(frozen=True)
class BenchStageRecord:
    """Speed of every file; None where it was left out."""

    bench: BenchRecord | None


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> BenchStageRecord:
    if not given.bench.wanted:
        progress(1, 1, "left out: --no-bench")
        return BenchStageRecord(None)
    context.let_go()
    items = [
        BenchItem(a.name, context.out / a.path, a.variant, a.target)
        for a in context.record(export.STAGE).artifacts
    ]
    settings = BenchSettings(
        prompt=given.bench.prompt,
        generate=given.bench.generate,
        rounds=given.bench.rounds,
        time_budget_s=given.bench.budget_s,
        threads=given.threads,
        seed=context.ground.seed,
        gpu_layers=given.gpu_layers,
    )
    return BenchStageRecord(run_bench(items, settings, progress=progress))


STAGE: Stage[Inputs, BenchStageRecord] = Stage(
    "bench", "Bench", (export.STAGE,), BenchStageRecord, inputs, run
)
