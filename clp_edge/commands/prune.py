"""prune: cut blocks, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import CompressConfig
from clp_edge.progress import Interruptible


def run(
    model: options.Model = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="The very blocks to drop, FIRST-LAST, both inclusive, from 0."),
    ] = None,
    found: Annotated[
        Path | None,
        typer.Option("--from", help="A search.json, or the folder that `clp-edge search` wrote."),
    ] = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = True,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Cut blocks out of a model: OUT/hf is a plain Hugging Face folder, not healed yet.

    Without MODEL, --from takes the model that was searched.

    Example: clp-edge prune ./my-model --blocks 12-17 --out cut
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        asked = CompressConfig.of(
            model,
            targets=(),
            blocks=blocks,
            out=out,
            force=force,
            resume=resume,
            device=device,
            dtype=dtype,
            command=command_line(),
        )
        import_torch()
        from clp_edge.pipeline import verbs
        from clp_edge.pipeline.verbs.search import read_search
        from clp_edge.records import to_plain

        searched = read_search(found) if found is not None else None
        with Interruptible(ui) as observer:
            done = verbs.prune(asked, found=searched, observer=observer)
        if json_output:
            ui.print_json(to_plain(done.document))
            return
        says = done.document.provenance
        span = says.segments[0]
        ui.result(f"wrote {done.out / done.document.folder}")
        ui.result(
            f"blocks {span.first}-{span.last} of {says.blocks_before} are gone; "
            f"mend the cut with: clp-edge heal {done.out}",
            style="bold",
        )
