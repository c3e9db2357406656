"""Export: every target, dense and healed, each verified before it gets its name."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clp_edge
import clp_edge.export as exporters
from clp_edge.config import CompressConfig
from clp_edge.export.base import Target
from clp_edge.models.source import save_model
from clp_edge.pipeline.preflight import Plan
from clp_edge.pipeline.stage import UNKEYED, Context, Stage
from clp_edge.pipeline.stages import cut, heal, search
from clp_edge.progress import Progress
from clp_edge.records import ArtifactRecord, ExportRecord, Variant


@dataclass(frozen=True)
class Inputs:
    """What to write, and under which names."""

    targets: tuple[Target, ...]
    dense: bool
    """whether the dense model is written too, to compare with"""
    name: str
    """of the healed model"""
    blocks_before: int
    threads: int = field(metadata=UNKEYED)


def inputs(config: CompressConfig, plan: Plan) -> Inputs:
    targets = tuple(planned.target for planned in plan.targets)
    return Inputs(targets, config.bench.wanted, plan.name, plan.blocks, plan.threads)


def run(given: Inputs, context: Context, room: Path, progress: Progress) -> ExportRecord:
    variants: tuple[Variant, ...] = ("dense", "healed") if given.dense else ("healed",)
    jobs = [(target, variant) for target in given.targets for variant in variants]
    folders = {"healed": context.out / cut.FOLDER}
    if given.dense:
        folders["dense"] = _dense_folder(context, room)
    context.let_go()
    written: list[ArtifactRecord] = []
    files: list[str] = []
    with ExitStack() as stack:
        # One exporter a format and side: what its targets share is made once.
        opened: dict[tuple[str, Variant], exporters.Exporter] = {}
        for number, (target, variant) in enumerate(jobs):
            # "variant: note" of the step, as a share of all steps
            def step(done: float, total: float, note: str = "", at: int = number) -> None:
                share = done / total if total else 0.0
                progress(at + share, len(jobs), f"{jobs[at][1]} {jobs[at][0].name}: {note}")

            if (target.format, variant) not in opened:
                opened[target.format, variant] = stack.enter_context(
                    exporters.format_of(target).open(
                        folders[variant],
                        metadata=_metadata(given, context, variant),
                        threads=given.threads,
                        workdir=room / target.format / variant,
                    )
                )
            path = _artifact_path(given, context, target, variant)
            for file in context.folder.ours_below(path):
                file.unlink()
            context.folder.claim(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact = opened[target.format, variant].export(target, path, progress=step)
            made = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            context.folder.own(made)
            files += context.folder.relative(made)
            written.append(
                ArtifactRecord(
                    name=f"{variant} {target.file_suffix}",
                    target=target.name,
                    variant=variant,
                    path=os.path.relpath(path, context.out),
                    bytes=artifact.bytes,
                    bits_per_weight=artifact.bits_per_weight,
                    fallback_tensors=artifact.fallback_tensors,
                    sha256=artifact.sha256,
                    verified=artifact.verified,
                    verify=artifact.verify,
                )
            )
    for leftover in sorted(room.rglob("*"), reverse=True):  # intermediates of the exporter
        leftover.unlink() if leftover.is_file() or leftover.is_symlink() else leftover.rmdir()
    return ExportRecord(tuple(written), tuple(files))


STAGE: Stage[Inputs, ExportRecord] = Stage(
    "export",
    "Export and verify",
    (search.STAGE, heal.STAGE, cut.STAGE),
    ExportRecord,
    inputs,
    run,
    files=lambda record: record.files,
)


def _dense_folder(context: Context, room: Path) -> Path:
    """The dense model as a Hugging Face folder: the source's own, or written for the export."""
    ground = context.ground
    if not ground.source.is_gguf:
        return ground.source.path
    folder = room / "dense-hf"
    save_model(context.model(), ground.tokenizer, folder, dtype=ground.stored, source=ground.source)
    return folder


def _artifact_path(given: Inputs, context: Context, target: Target, variant: Variant) -> Path:
    parent = context.out / target.format
    if variant == "dense":
        return parent / "dense" / target.file_name(context.ground.source.name)
    return parent / target.file_name(given.name)


def _metadata(given: Inputs, context: Context, variant: Variant) -> dict[str, Any]:
    source = context.ground.source.name
    base = {
        "version": clp_edge.__version__,
        "source": source,
        "variant": variant,
        "general.name": source if variant == "dense" else given.name,
    }
    if variant == "dense":
        return base
    found, healed = context.record(search.STAGE), context.record(heal.STAGE)
    return {
        **base,
        "segment": str(search.segment(context)),
        "blocks_before": given.blocks_before,
        "method": f"search {found.method}, heal {healed.method}",
    }
