"""The list of targets."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands.frame import opened


def run(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List the targets that can be written, with a line of advice for each."""
    with opened(json=json_output) as ui:
        from clp_edge.export.targets import all_targets

        found = all_targets()
        if json_output:
            ui.print_json(
                [{"name": t.name, "aliases": t.aliases, "advice": t.advice} for t in found]
            )
            return
        listed = [(t.name, ", ".join(t.aliases), t.advice) for t in found]
        ui.table("targets", ("target", "also", "advice"), listed)
