"""A model's anatomy, and what each target would cost."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands.frame import opened


def run(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, a hub id or a .gguf file. Left out: the demo model."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", "-t", help="Targets to price; repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback.")] = False,
) -> None:
    """Show a model's anatomy, what a block weighs, and what each target would cost.

    Example: clp-edge inspect ./my-model --target gguf-q4
    """
    with opened(json=json_output, debug=debug) as ui:
        from clp_edge.pipeline.inspection import inspect_model

        found = inspect_model(model, tuple(target or ()))
        if json_output:
            ui.print_json(found.as_json())
            return
        ui.table(found.name, ("part", "value"), found.facts)
        ui.table("targets, whole model", ("target", "size", "bits/weight", "note"), found.costs)
        for warning in found.warnings:
            ui.warn(warning)
