"""Export: every target, dense and healed, each verified before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import clp_edge.export as exporters
from clp_edge.config import CompressConfig, FileConfig
from clp_edge.durable import remove_leftovers, write_text
from clp_edge.errors import VerificationError
from clp_edge.export.base import Target
from clp_edge.models.source import save_model
from clp_edge.pipeline import provenance
from clp_edge.pipeline.folder import HF_FOLDER
from clp_edge.pipeline.foretold import options_of
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import UNKEYED, Context, Stage
from clp_edge.pipeline.stages import calibrate, cut
from clp_edge.progress import Progress
from clp_edge.records import ArtifactRecord, ExportRecord, Variant


@dataclass(frozen=True)
class Job:
    """One artifact to write: a folder as a target, where to, and what it says of itself."""

    target: Target
    variant: Variant
    folder: Path
    destination: Path
    metadata: dict[str, Any]
    calibration: Tensor | None
    """(sequences, tokens): what importance is measured on"""
    options: exporters.ExportOptions


@dataclass(frozen=True)
class Inputs:
    """What to write, and under which names."""

    targets: tuple[Target, ...]
    dense: bool
    """whether the dense model is written too, to compare with"""
    name: str
    """of the healed model"""
    files: FileConfig
    threads: int = field(metadata=UNKEYED)


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    targets = tuple(planned.target for planned in plan.targets)
    return Inputs(targets, config.bench.wanted, plan.name, config.files, plan.threads)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> ExportRecord:
    source = context.ground.source.name
    healed = context.out / HF_FOLDER
    says = provenance.read(healed)
    assert says is not None  # the cut stage wrote it
    dense = dense_folder(context, room) if given.dense else None
    text = calibrate.calibration(context).fit
    context.let_go()
    jobs = []
    for target in given.targets:
        parent = context.out / target.format
        if dense is not None:
            path = parent / "dense" / target.file_name(source)
            options = options_of(given.files, None)
            metadata = provenance.dense_metadata(source)
            jobs.append(Job(target, "dense", dense, path, metadata, text, options))
        path = parent / target.file_name(given.name)
        options = options_of(given.files, says)
        metadata = provenance.file_metadata(says)
        jobs.append(Job(target, "healed", healed, path, metadata, text, options))
    return write(jobs, context, room, threads=given.threads, progress=progress)


STAGE: Stage[Inputs, ExportRecord] = Stage(
    "export",
    "Export and verify",
    (calibrate.STAGE, cut.STAGE),
    ExportRecord,
    inputs,
    run,
    files=lambda record: record.files,
)


def write(
    jobs: Sequence[Job],
    context: Context,
    room: Path,
    *,
    threads: int,
    progress: Progress,
    failures: list[str] | None = None,
) -> ExportRecord:
    """Write and prove every job's artifact, in order.

    failures: where given, a file that does not pass its proof is told there, deleted and left out,
        instead of ending the run; for what is only compared.

    `room` holds intermediates meanwhile, and is empty afterwards, whether that went well or not.
    """
    written: list[ArtifactRecord] = []
    files: list[str] = []
    with ExitStack() as stack:
        stack.callback(_clear, room)
        # One exporter a format and side: what its targets share is made once.
        opened: dict[tuple[str, Variant], exporters.Exporter] = {}
        for number, job in enumerate(jobs):
            target, path = job.target, job.destination
            if (target.format, job.variant) not in opened:
                opened[target.format, job.variant] = stack.enter_context(
                    exporters.format_of(target).open(
                        job.folder,
                        metadata=job.metadata,
                        threads=threads,
                        workdir=room / target.format / job.variant,
                        calibration=job.calibration,
                        options=job.options,
                    )
                )
            for file in context.folder.ours_below(path):
                file.unlink()
            context.folder.claim(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                artifact = opened[target.format, job.variant].export(
                    target, path, progress=_share(progress, number, jobs)
                )
            except VerificationError as error:
                if failures is None:
                    raise
                failures.append(f"{job.variant} {target.file_suffix} was left out: {error.cause}")
                remove_leftovers(path.parent)
                continue
            made = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            if job.variant == "healed":
                beside = exporters.format_of(target).companions(job.folder, path.name)
                for name, text in beside.items():
                    companion = path.with_name(name)
                    context.folder.claim(companion)
                    write_text(companion, text)
                    made.append(companion)
            context.folder.own(made)
            files += context.folder.relative(made)
            written.append(
                ArtifactRecord(
                    name=f"{job.variant} {target.file_suffix}",
                    target=target.name,
                    variant=job.variant,
                    path=os.path.relpath(path, context.out),
                    bytes=artifact.bytes,
                    bits_per_weight=artifact.bits_per_weight,
                    fallback_tensors=artifact.fallback_tensors,
                    sha256=artifact.sha256,
                    verified=artifact.verified,
                    verify=artifact.verify,
                )
            )
    return ExportRecord(tuple(written), tuple(files))


def _clear(room: Path) -> None:
    """An F16 file and a dense folder are as large as the model."""
    for leftover in sorted(room.rglob("*"), reverse=True):
        leftover.unlink() if leftover.is_file() or leftover.is_symlink() else leftover.rmdir()


def _share(progress: Progress, number: int, jobs: Sequence[Job]) -> Progress:
    """The progress of one job, as a share of all."""
    job = jobs[number]

    def step(done: float, total: float, note: str = "") -> None:
        share = done / total if total else 0.0
        progress(number + share, len(jobs), f"{job.variant} {job.target.name}: {note}")

    return step


def dense_folder(context: Context, room: Path) -> Path:
    """The dense model as a Hugging Face folder: the source's own, or written for the export."""
    ground = context.ground
    if not ground.source.is_gguf:
        return ground.source.path
    folder = room / "dense-hf"
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(context.model(), ground.tokenizer, folder, dtype=ground.stored, source=ground.source)
    return folder
