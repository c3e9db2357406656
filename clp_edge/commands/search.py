"""search: which blocks go, with receipts."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.config import CompressConfig
from clp_edge.progress import Interruptible
from clp_edge.registry import METHODS


def run(
    model: options.Model = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Share of blocks to drop, between 0 and 1. [default: 0.2]"),
    ] = None,
    drop_blocks: Annotated[int | None, typer.Option(help="Number of blocks to drop.")] = None,
    method: Annotated[
        str, typer.Option(help=f"How to find the blocks. {METHODS.help()}.")
    ] = "auto",
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            help="Never propose a cut that this target cannot express; repeatable.",
        ),
    ] = None,
    calibration: options.Calibration = None,
    out: options.Out = None,
    force: options.Force = False,
    resume: options.Resume = True,
    preset: options.Preset = options.PresetName.balanced,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the run of blocks a model can do without; cut nothing.

    Writes OUT/search.json (by default in ./NAME-search) for `clp-edge prune --from`.

    Example: clp-edge search ./my-model --drop-blocks 6 --out found
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        asked = CompressConfig.of(
            model,
            targets=tuple(target or ()),
            preset=preset.value,
            prune=prune,
            drop_blocks=drop_blocks,
            search=method,
            calibration=calibration,
            out=out,
            force=force,
            resume=resume,
            seed=seed,
            threads=threads,
            device=device,
            dtype=dtype,
            command=command_line(),
        )
        ui.note("looking at the model and the machine")
        import_torch()
        from clp_edge.pipeline import verbs
        from clp_edge.records import to_plain

        with Interruptible(ui) as observer:
            done = verbs.search(asked, observer=observer)
        found = done.document.search
        if json_output:
            ui.print_json(to_plain(done.document))
            return
        best = sorted(
            (window for window in found.windows if window.kl_raw is not None),
            key=lambda window: window.kl_raw or 0.0,
        )
        ui.table(
            f"{found.method}: {found.reason}",
            ("blocks", "KL when they go (nats)", "standard error"),
            [
                (
                    f"{window.first}-{window.last}",
                    f"{window.kl_raw:.3f}",
                    "not measured" if window.kl_raw_se is None else f"{window.kl_raw_se:.3f}",
                )
                for window in best[:8]
            ],
        )
        if found.near_tie:
            ui.warn("the two best windows are a near tie: their gap is within its error")
        assert found.segment is not None
        gone = f"{found.segment.first}-{found.segment.last} of {done.document.blocks}"
        ui.result(f"wrote {done.out / 'search.json'}")
        ui.result(f"blocks {gone} can go at the least loss", style="bold")
