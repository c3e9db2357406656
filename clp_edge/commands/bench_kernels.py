"""bench-kernels: what the kernels of the gate search achieve on this GPU."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import import_torch, opened
from clp_edge.progress import Interruptible


def run(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="A model's shape, such as Llama-3-8B; repeatable. [default: all five]"),
    ] = None,
    rows: Annotated[int, typer.Option(help="Tokens of a step.")] = 4096,
    rounds: Annotated[int, typer.Option(help="Measured rounds; 6 is the least for 95 %.")] = 12,
    kernels: Annotated[
        bool, typer.Option("--kernels/--no-kernels", help="Each kernel by itself.")
    ] = True,
    step: Annotated[
        bool, typer.Option("--step/--no-step", help="The whole step of the gate search.")
    ] = True,
    blocks: Annotated[
        int | None, typer.Option(help="Blocks of the step's model. [default: what fits]")
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Try the code on the processor, at a tiny shape.")
    ] = False,
    seed: options.Seed = 0,
    json_output: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure the kernels against eager torch, torch.compile and Liger-Kernel on this GPU.

    Example: clp-edge bench-kernels --shape Llama-3-8B --json > h100.json
    """
    with opened(json=json_output, quiet=quiet, debug=debug) as ui:
        import_torch()
        from clp_edge.bench.kernels import SHAPES, KernelSettings, Measured, bench_kernels
        from clp_edge.search.gated import gated_final_hidden

        settings = KernelSettings(
            shapes=tuple(shape or SHAPES),
            rows=rows,
            rounds=rounds,
            kernels=kernels,
            step=step,
            blocks=blocks,
            seed=seed,
            cpu=cpu,
        )
        with Interruptible(ui) as observer, observer.stage(1, 1, "Kernels") as progress:
            found = bench_kernels(settings, gated_final_hidden, progress=progress)
        if json_output:
            ui.print_json(found.as_json())
            return

        def cells(measured: Measured) -> list[list[str]]:
            rows = []
            for timing in measured.timings:
                where = f"{measured.name} {measured.direction}".strip()
                size = f"{measured.rows} x {measured.width}"
                if measured.blocks is not None:
                    size = f"{measured.blocks} blocks"
                if timing.interval is None:
                    took, share = f"not measured: {timing.reason}", ""
                else:
                    one = timing.interval
                    took = f"{one.median:.3f} ({one.low:.3f} to {one.high:.3f})"
                    share = "" if timing.share_of_copy is None else f"{timing.share_of_copy:.0%}"
                memory = "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:,.0f}"
                rows.append([measured.shape, where, size, timing.contender, took, share, memory])
            return rows

        header = ("model", "what", "size", "by", "ms", "of copy", "peak MiB")
        table = [row for one in (*found.kernels, *found.steps) for row in cells(one)]
        speed = found.copy.gb_per_s
        copied = "copy not measured" if speed is None else f"copy {speed:,.1f} GB/s"
        ui.table(f"{found.device}, {found.kernels_choice}; {copied}", header, table)
        for text in found.notes:
            ui.result(text)
