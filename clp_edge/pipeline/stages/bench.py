"""Bench: speed of every file, interleaved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clp_edge.bench.ceiling import card_of
from clp_edge.bench.runner import BenchItem, BenchSettings, run_bench
from clp_edge.config import BenchConfig, CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import export
from clp_edge.progress import Progress
from clp_edge.records import ArtifactRecord, BenchRecord, ContextMemoryRecord
from clp_edge.runtimes import GpuLayers

LONG_CONTEXT = 4096


@dataclass(frozen=True)
class Inputs:
    """Whether and how speed is measured."""

    bench: BenchConfig
    threads: int
    gpu_layers: GpuLayers = "auto"
    context: int = LONG_CONTEXT
    """tokens that the memory at context is told for"""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    limit = int(getattr(plan.config, "max_position_embeddings", 0) or LONG_CONTEXT)
    return Inputs(config.bench, plan.threads, config.files.gpu_layers, min(LONG_CONTEXT, limit))


@dataclass(frozen=True)
class BenchStageRecord:
    """Speed of every file; None where it was left out."""

    bench: BenchRecord | None
    memory: dict[str, ContextMemoryRecord] = field(default_factory=dict)
    """artifact -> weights and cache at a long context; those without a tensor table left out"""


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> BenchStageRecord:
    if not given.bench.wanted:
        progress(1, 1, "left out: --no-bench")
        return BenchStageRecord(None)
    context.let_go()
    return measure(given, context.record(export.STAGE).artifacts, context, progress)


def measure(
    given: Inputs, artifacts: Sequence[ArtifactRecord], context: Context, progress: Progress
) -> BenchStageRecord:
    """Time these artifacts in one bench, and read off what each takes at a long context."""
    items = [BenchItem(a.name, context.out / a.path, a.variant, a.target) for a in artifacts]
    memory = {}
    for item in items:
        card = card_of(item.path)
        if card is not None:
            cache = card.bytes_per_token(given.context) - card.weight_bytes_per_token
            memory[item.name] = ContextMemoryRecord(given.context, card.file_bytes, cache)
    settings = BenchSettings(
        prompt=given.bench.prompt,
        generate=given.bench.generate,
        rounds=given.bench.rounds,
        time_budget_s=given.bench.budget_s,
        threads=given.threads,
        seed=context.ground.seed,
        gpu_layers=given.gpu_layers,
    )
    return BenchStageRecord(run_bench(items, settings, progress=progress), memory)


STAGE: Stage[Inputs, BenchStageRecord] = Stage(
    "bench", "Bench", (export.STAGE,), BenchStageRecord, inputs, run
)
