"""Evaluation text: the sequences that everything is measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from clp_edge import data
from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage, keyed_by
from clp_edge.pipeline.stages import calibrate
from clp_edge.progress import Progress
from clp_edge.records import EvaluationRecord

TENSORS = "evaluation.safetensors"


def _contents(text: str | None) -> str | None:
    """The sha256 of a text, so that another text under the same name is another key."""
    return data.read_documents(text, cut=False).sha256 if text is not None else None


@dataclass(frozen=True)
class Inputs:
    """Which text, and how much of it."""

    sequences: int | Literal["all"]
    length: int
    text: str | None = field(metadata=keyed_by(_contents))
    """None: the held-back part of the calibration text"""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(config.evaluation.sequences, plan.evaluation_length, config.evaluation.text)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> EvaluationRecord:
    against = calibrate.calibration(context)
    if given.text is None:
        found = data.held_back(against)
    else:
        found = data.evaluation_text(
            given.text,
            context.ground.tokenizer,
            sequences=given.sequences,
            length=given.length,
            against=against,
        )
    progress(1, 1, f"{len(found.ids)} sequences of {found.ids.shape[1]} tokens")
    save_file({"ids": found.ids}, str(room / TENSORS))
    return EvaluationRecord(
        text=found.origin,
        sha256=found.sha256,
        tokens=found.tokens,
        sequence_length=int(found.ids.shape[1]),
        removed_as_leaked=found.removed_as_leaked,
    )


STAGE: Stage[Inputs, EvaluationRecord] = Stage(
    "text", "Evaluation text", (calibrate.STAGE,), EvaluationRecord, inputs, run
)


def evaluation_ids(context: Context) -> Tensor:
    """(sequences, tokens) int64, on the device that torch computes on."""
    ids = load_file(str(context.stage_folder(STAGE) / TENSORS))["ids"]
    return ids.to(context.ground.device)
