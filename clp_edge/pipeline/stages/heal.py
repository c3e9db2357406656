"""Heal: the new weights of the blocks around the cut."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clp_edge.config import CompressConfig
from clp_edge.heal import HealResult, TuningSettings
from clp_edge.heal.blocks import tuned_blocks
from clp_edge.pipeline import healing_memory
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.shared_healing import Task
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import calibrate, search
from clp_edge.progress import Progress
from clp_edge.records import HealRecord, TuningRecord, measured

TENSORS = "healed.safetensors"


@dataclass(frozen=True)
class Inputs:
    """How far up the ladder, and how much tuning."""

    rungs: str
    steps: int
    rate: float
    tune_blocks: str


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    """Raises UsageError where --tune-blocks names a block that is not there."""
    asked, named = config.heal, config.cut.segment
    if asked.named_blocks and named is not None:
        tuned_blocks(asked.tune_blocks, named, plan.blocks)
    return Inputs(asked.rungs, asked.steps, asked.rate, asked.tune_blocks)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> HealRecord:
    began = time.perf_counter()
    text = calibrate.calibration(context)
    ground, segment, body = context.ground, search.segment(context), context.learner()
    ranks = context.ranks
    if given.rungs != "none":
        told = healing_memory.of_text(
            body,
            segment,
            given.tune_blocks,
            given.rungs,
            sequences=(len(text.fit), len(text.select)),
            length=text.length,
            device=ground.device,
            weights=ground.compute,
            autocast=ground.learning.dtype,
        )
        context.observer.note(f"healing holds {healing_memory.words(told)} on {ground.device}")
    try:
        task = Task(
            ground.source,
            ground.device,
            ground.compute,
            segment,
            text.fit,
            text.select,
            autocast=ground.learning.dtype,
            rungs=given.rungs,
            tune_blocks=given.tune_blocks,
            tuning=TuningSettings(steps=given.steps, rate=given.rate),
            seed=ground.seed,
            threads=torch.get_num_threads(),
        )
        if not ranks.alone:
            context.observer.note(f"{ranks.count} processes heal together")
            ranks.told(task)
        found = task.heal(body, ranks, progress)
    finally:
        # On the CPU it has lost weights: the stages behind this one read it anew.
        context.let_go()
    state = {
        f"{index}.{name}": value.contiguous()
        for index, tensors in found.state.items()
        for name, value in tensors.items()
    }
    save_file(state, str(room / TENSORS))
    for note in found.notes:
        context.observer.note(note)
    return HealRecord(
        method=given.rungs,
        trained_blocks=tuple(sorted(found.state)),
        kl_cut=found.kl_cut,
        kl_refit=found.kl_refit,
        kl_tuned=found.kl_tuned,
        ridge=found.ridge,
        explained=found.explained,
        history=tuple(TuningRecord(point.step, point.kl) for point in found.history),
        notes=found.notes,
        parts=found.seconds,
        rungs=found.rungs,
        ratio_cut=None if found.ratio_cut is None else measured(found.ratio_cut[0]),
        ratio_cut_se=None if found.ratio_cut is None else measured(found.ratio_cut[1]),
        held_sequences=found.held_sequences,
        precision=context.ground.learning.name,
        seconds=time.perf_counter() - began,
    )


STAGE: Stage[Inputs, HealRecord] = Stage(
    "heal", "Heal", (calibrate.STAGE, search.STAGE), HealRecord, inputs, run
)


def healing(context: Context) -> HealResult:
    """What the stage left, ready to be applied to a cut model."""
    record = context.record(STAGE)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(str(context.stage_folder(STAGE) / TENSORS)).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    assert record.kl_cut is not None
    return HealResult(
        method=record.method,
        segment=search.segment(context),
        kl_cut=record.kl_cut,
        rungs=record.rungs,
        notes=record.notes,
        state=state,
        collect_seconds=record.parts["collect"],
    )
