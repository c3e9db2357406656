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
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage
from clp_edge.pipeline.stages import heal, search
from clp_edge.progress import Progress
from clp_edge.records import CutRecord

FOLDER = "hf"


@dataclass(frozen=True)
class Inputs:
    """Nothing of its own: search and heal say it all."""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs()


def pruned(context: Context) -> Any:
    """The dense model without the segment, sharing its tensors."""
    model = context.model()
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    cut = copy.deepcopy(model, memo=dict(shared))
    remove_blocks(cut, search.segment(context).blocks)
    return cut


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> CutRecord:
    final = context.out / FOLDER
    for file in context.folder.ours_below(final):
        file.unlink()
    context.folder.claim(final)
    model = pruned(context)
    heal.healing(context).apply(model)
    progress(1, 2, f"{len(dissect(model))} blocks")
    ground = context.ground
    save_model(model, ground.tokenizer, final, dtype=ground.stored, source=ground.source)
    progress(2, 2, "saved as a Hugging Face folder")
    return CutRecord(context.folder.relative(final.rglob("*")))


STAGE: Stage[Inputs, CutRecord] = Stage(
    "cut",
    "Cut",
    (search.STAGE, heal.STAGE),
    CutRecord,
    inputs,
    run,
    files=lambda record: record.files,
)
