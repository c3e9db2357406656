"""export: a Hugging Face folder as files for the device."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import FileConfig
from clp_edge.errors import UsageError
from clp_edge.progress import Interruptible


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
    gpu_layers: options.GpuLayers = "auto",
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = True,
    threads: options.Threads = None,
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
        from clp_edge.records import to_plain
        from clp_edge.runtimes import parse_gpu_layers

        asked = verbs.ExportConfig(
            model=folder,
            targets=tuple(target or ()),
            calibration=calibration,
            files=FileConfig(tuple(tensor_type or ()), careful, ep, parse_gpu_layers(gpu_layers)),
            out=out,
            force=force,
            resume=resume,
            threads=threads,
            command=command_line(),
        )
        ui.note("looking at the folder and the machine")
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
