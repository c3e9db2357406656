"""heal: mend a model that was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import command_line, import_torch, opened
from clp_edge.commands.processes import threads_each, together
from clp_edge.config import CompressConfig
from clp_edge.progress import Interruptible
from clp_edge.registry import RUNGS


def run(
    folder: Annotated[
        Path,
        typer.Argument(help="A cut Hugging Face folder, or an output folder of clp-edge prune."),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(
            help="The dense model that it was cut from. Left out: the one that the folder names."
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="The blocks that were cut, FIRST-LAST. Left out: found by equal tensors."
        ),
    ] = None,
    rungs: Annotated[
        str, typer.Option("--heal", help=f"How far to climb in mending the cut. {RUNGS.help()}.")
    ] = "endpoints",
    tune_blocks: options.TuneBlocks = "near",
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
    """Mend a cut by tuning the blocks beside it, also one that was made by hand.

    OUT/hf is the healed folder. A folder that clp-edge did not cut needs --teacher.
    Several processes that torchrun has started share the steps.

    Example: clp-edge heal ./cut --teacher ./my-model --calibration my-texts/ --out healed
    """
    with (
        opened(json=json_output, quiet=quiet, debug=debug) as ui,
        together(device) as ranks,
    ):
        if ranks is not None and not ranks.first:
            from clp_edge.pipeline.shared_healing import heal_along

            heal_along(ranks)
            return
        asked = CompressConfig.of(
            targets=(),
            preset=preset.value,
            blocks=blocks,
            heal=rungs,
            tune_blocks=tune_blocks,
            calibration=calibration,
            out=out,
            force=force,
            resume=resume,
            seed=seed,
            threads=threads_each() if threads is None and ranks is not None else threads,
            device=device,
            dtype=dtype,
            command=command_line(),
        )
        ui.note("comparing the folder with the model it was cut from")
        import_torch()
        from clp_edge.heal.ranks import SINGLE
        from clp_edge.pipeline import verbs
        from clp_edge.records import to_plain

        with Interruptible(ui) as observer:
            done = verbs.heal(
                asked, folder, teacher=teacher, observer=observer, ranks=ranks or SINGLE
            )
        if json_output:
            ui.print_json(to_plain(done.document))
            return
        healed = done.document.heal
        assert healed is not None
        rows = [
            (name, f"{value:.3f}" if value is not None else "not kept")
            for name, value in (
                ("cut", healed.kl_cut),
                *((rung.name, rung.kl_after if rung.kept else None) for rung in healed.rungs),
            )
        ]
        ui.table("", ("after", "KL on held-back text (nats)"), rows)
        span = done.document.provenance.segments[0]
        ui.result(f"wrote {done.out / done.document.folder}")
        ui.result(f"the cut of blocks {span.first}-{span.last} is mended", style="bold")
