"""export: a Hugging Face folder as files for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import FileConfig
from clp_edge.errors import UsageError
from clp_edge.progress import Interruptible

if TYPE_CHECKING:
    from clp_edge.pipeline.verbs.export import ExportPlanned
    from clp_edge.ui import Ui


def run(
    folder: Annotated[
        str | None,
        typer.Argument(help="A Hugging Face folder, or an output folder of prune, heal, compress."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="What to write, such as gguf-q4; repeatable."),
    ] = None,
    list_targets: Annotated[
        bool, typer.Option("--list-targets", help="List every target with a line of advice.")
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Text that shows which weights matter, for types of 6 bits and less. Left out: "
            "what an output folder of clp-edge heal was healed with."
        ),
    ] = None,
    tensor_type: options.TensorType = None,
    careful: options.Careful = False,
    ep: options.Provider = "cpu",
    converter: options.Converter = "auto",
    gpu_layers: options.GpuLayers = "auto",
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = True,
    threads: options.Threads = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the size of every file (of GGUF to the byte), write "
            "nothing.",
        ),
    ] = False,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Quantize and write a model for the device; every file is proved before it gets its name.

    Example: clp-edge export ./healed --target gguf-q4 --target onnx-int4 --out files
    """
    if list_targets:
        from clp_edge.commands import targets

        targets.run(json_output=json_output)
        return
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        if folder is None:
            raise UsageError("no folder was given", "give a Hugging Face folder")
        import_torch()
        from clp_edge.pipeline import verbs
        from clp_edge.pipeline.verbs.export import plan_export
        from clp_edge.records import to_plain
        from clp_edge.runtimes import parse_gpu_layers

        asked = verbs.ExportConfig(
            model=folder,
            targets=tuple(target or ()),
            calibration=calibration,
            files=FileConfig(
                tuple(tensor_type or ()), careful, ep, parse_gpu_layers(gpu_layers), converter
            ),
            out=out,
            force=force,
            resume=resume,
            threads=threads,
            command=command_line(),
        )
        ui.note("looking at the folder and the machine")
        if dry_run:
            _print_plan(ui, plan_export(asked))
            return
        with Interruptible(ui) as observer:
            done = verbs.export(asked, observer=observer)
        if json_output:
            ui.print_json(to_plain(done.document))
            return
        rows = [
            (
                artifact.target,
                f"{artifact.bytes / 1e6:.1f} MB",
                "-" if artifact.bits_per_weight is None else f"{artifact.bits_per_weight:.2f}",
                f"{artifact.verify['kl']:.4f}",
                str(done.out / artifact.path),
            )
            for artifact in done.document.artifacts
        ]
        ui.table("written and verified", ("target", "size", "bits/weight", "KL", "path"), rows)


def _print_plan(ui: Ui, plan: ExportPlanned) -> None:
    """What an export would write, and nothing is written."""
    if ui.json:
        rows = [
            {
                "target": file.target.name,
                "file": file.target.file_name(plan.name),
                "predicted_bytes": file.predicted_bytes,
                "bits_per_weight": file.bits_per_weight,
                "fallback_tensors": file.fallback_tensors,
            }
            for file in plan.files
        ]
        ui.print_json({"targets": rows, "out": str(plan.out), "warnings": list(plan.warnings)})
        return
    ui.table(
        "files, predicted (nothing was written)",
        ("target", "bytes", "bits/weight", "tensors that fall back", "file"),
        [
            (
                file.target.name,
                f"{file.predicted_bytes:,}",
                f"{file.bits_per_weight:.2f}",
                str(file.fallback_tensors),
                file.target.file_name(plan.name),
            )
            for file in plan.files
        ],
    )
    for warning in plan.warnings:
        ui.warn(warning)
