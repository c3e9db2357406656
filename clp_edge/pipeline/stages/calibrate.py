"""Calibration text: read from what the user gave, or written by the model itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from clp_edge import data
from clp_edge.config import CompressConfig
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import Context, Stage, keyed_by
from clp_edge.progress import Progress
from clp_edge.records import CalibrationRecord

OWN_TEXT_BATCH = 128
"""sequences written at once: enough to keep the matrix products busy"""
TENSORS = "calibration.safetensors"


@dataclass(frozen=True)
class Inputs:
    """Where the text comes from, and how much of it."""

    sequences: int
    length: int
    documents: data.Documents | None = field(
        metadata=keyed_by(lambda found: found.sha256 if found else None)
    )
    """None: the model writes the text"""


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    return Inputs(config.calibration.sequences, plan.sequence_length, plan.documents)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> CalibrationRecord:
    ground = context.ground
    if given.documents is not None:
        found = data.calibrate(
            given.documents,
            ground.tokenizer,
            sequences=given.sequences,
            length=given.length,
            seed=ground.seed,
        )
    else:
        with context.learner().precision():
            found = data.write_own_text(
                context.model(),
                ground.tokenizer,
                sequences=given.sequences,
                length=given.length,
                seed=ground.seed,
                batch=OWN_TEXT_BATCH,
                progress=progress,
                cache_dir=cache_folder(),
                fingerprint=ground.fingerprint,
            )
    progress(1, 1, f"{found.sequences} sequences of {given.length} tokens")
    if said := str(found.repeats):
        context.observer.note(said)
    parts = {"fit": found.fit, "select": found.select, "report": found.report}
    save_file(parts, str(room / TENSORS))
    return CalibrationRecord(
        origin=found.origin,
        sha256=found.sha256,
        sequences={name: len(ids) for name, ids in parts.items()},
        fit_texts=found.fit_texts,
        select_texts=found.select_texts,
        report_texts=found.report_texts,
        report_sequences=found.report_sequences,
        copies_dropped=found.repeats.copies,
        repeats_not_held_back=found.repeats.near,
    )


STAGE: Stage[Inputs, CalibrationRecord] = Stage(
    "calibrate", "Calibration text", (), CalibrationRecord, inputs, run
)


def calibration(context: Context) -> data.Calibration:
    """What the stage left, ids on the processor."""
    record = context.record(STAGE)
    parts = load_file(str(context.stage_folder(STAGE) / TENSORS))
    return data.Calibration(
        fit=parts["fit"],
        select=parts["select"],
        report=parts["report"],
        origin=record.origin,
        sha256=record.sha256,
        fit_texts=record.fit_texts,
        select_texts=record.select_texts,
        report_texts=record.report_texts,
        report_sequences=record.report_sequences,
    )


def cache_folder() -> Path:
    """Where text that models wrote themselves is kept: CLP_EDGE_CACHE, or the user's cache."""
    own = os.environ.get("CLP_EDGE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "clp-edge"
