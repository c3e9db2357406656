"""The stages that write models: cut (a Hugging Face folder) and export (verified files)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import clp_edge
import clp_edge.export as export
from clp_edge.models.anatomy import dissect
from clp_edge.models.source import save_model
from clp_edge.pipeline.learning import healing
from clp_edge.pipeline.run import Run
from clp_edge.progress import Progress


def cut_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """The healed model as a Hugging Face folder."""
    final = run.plan.out / "hf"
    for file in run.ours_below(final):
        file.unlink()
    pruned = run.pruned()
    healing(run).apply(pruned)
    progress(1, 2, f"{len(dissect(pruned))} blocks")
    save_model(pruned, run.plan.tokenizer, final, dtype=run.plan.stored, source=run.plan.source)
    progress(2, 2, "saved as a Hugging Face folder")
    return {"files": run.relative(final.rglob("*"))}


def export_stage(run: Run, room: Path, progress: Progress) -> dict[str, Any]:
    """Every target, dense and healed, each verified before it gets its name."""
    jobs = [(p.target, variant) for p in run.plan.targets for variant in run.variants]
    dense = dense_folder(run, room) if "dense" in run.variants else None
    run.let_go()
    artifacts = []
    for number, (target, variant) in enumerate(jobs):
        # "variant: note" of the step, as a share of all steps
        def step(done: float, total: float, note: str = "", at: int = number) -> None:
            share = done / total if total else 0.0
            progress(at + share, len(jobs), f"{jobs[at][1]} {jobs[at][0].name}: {note}")

        folder = dense if variant == "dense" else run.plan.out / "hf"
        assert folder is not None
        path = artifact_path(run, target, variant)
        for file in run.ours_below(path):
            file.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact = export.export(
            folder,
            target,
            path,
            metadata=metadata(run, variant),
            threads=run.plan.threads,
            progress=step,
            workdir=room / variant,
        )
        run.folder.own([path])
        artifacts.append(
            {
                "name": f"{variant} {target.quantization}",
                "target": target.name,
                "variant": variant,
                "path": os.path.relpath(path, run.plan.out),
                "bytes": artifact.bytes,
                "bits_per_weight": artifact.bits_per_weight,
                "fallback_tensors": artifact.fallback_tensors,
                "sha256": artifact.sha256,
                "verified": artifact.verified,
                "verify": artifact.verify,
            }
        )
    for leftover in sorted(room.rglob("*"), reverse=True):  # intermediates of the exporter
        leftover.unlink() if leftover.is_file() or leftover.is_symlink() else leftover.rmdir()
    return {"artifacts": artifacts, "files": [a["path"] for a in artifacts]}


def dense_folder(run: Run, room: Path) -> Path:
    """The dense model as a Hugging Face folder: the source's own, or written for the export."""
    if not run.plan.source.is_gguf:
        return run.plan.source.path
    folder = room / "dense-hf"
    save_model(
        run.model(),
        run.plan.tokenizer,
        folder,
        dtype=run.plan.stored,
        source=run.plan.source,
    )
    return folder


def artifact_path(run: Run, target: Any, variant: str) -> Path:
    if variant == "dense":
        name = f"{run.plan.source.name}.{target.file_suffix}.gguf"
        return run.plan.out / target.format / "dense" / name
    return run.plan.out / target.format / f"{run.plan.name}.{target.file_suffix}.gguf"


def metadata(run: Run, variant: str) -> dict[str, Any]:
    base = {
        "version": clp_edge.__version__,
        "source": run.plan.source.name,
        "general.name": run.plan.source.name if variant == "dense" else run.plan.name,
    }
    if variant == "dense":
        return {**base, "variant": "dense"}
    return {
        **base,
        "variant": variant,
        "segment": str(run.segment),
        "blocks_before": run.plan.blocks,
        "method": f"search {run.results['search']['method']}, heal {run.results['heal']['method']}",
    }
