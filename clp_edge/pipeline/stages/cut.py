"""Cut: the healed model as a plain Hugging Face folder."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clp_edge.config import CompressConfig
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import save_model
from clp_edge.models.surgery import remove_blocks
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import heal, search
from clp_edge.progress import Progress
from clp_edge.records import CutRecord, Provenance
from clp_edge.segment import Segment


@dataclass(frozen=True)
class Inputs:
    """What the folder says of itself."""

    name: str
    blocks_before: int
    found_by: str | None


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(plan.name, plan.blocks, config.cut.found_by)


def pruned(context: Context, segment: Segment) -> Any:
    """The dense model without the segment, sharing its tensors."""
    model = context.model()
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    cut = copy.deepcopy(model, memo=dict(shared))
    remove_blocks(cut, segment.blocks)
    return cut


def save(context: Context, model: Any, says: Provenance, progress: Progress) -> CutRecord:
    """Write a cut model as OUT/hf, with its provenance."""
    final = context.out / HF_FOLDER
    for file in context.folder.ours_below(final):
        file.unlink()
    context.folder.claim(final)
    progress(1, 2, f"{len(dissect(model))} blocks")
    ground = context.ground
    save_model(model, ground.tokenizer, final, dtype=ground.stored, source=ground.source)
    provenance.write(final, says)
    progress(2, 2, "saved as a Hugging Face folder")
    return CutRecord(context.folder.relative(final.rglob("*")))


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> CutRecord:
    found, healed = context.record(search.STAGE), context.record(heal.STAGE)
    model = pruned(context, search.segment(context))
    heal.healing(context).apply(model)
    says = provenance.of_cut(
        context.ground.source,
        given.name,
        given.blocks_before,
        found,
        search_method=given.found_by or found.method,
        heal_method=healed.method,
    )
    return save(context, model, says, progress)


STAGE: Stage[Inputs, CutRecord] = Stage(
    "cut",
    "Cut",
    (search.STAGE, heal.STAGE),
    CutRecord,
    inputs,
    run,
    files=lambda record: record.files,
)
