"""What this machine can run."""

from __future__ import annotations

from typing import Annotated

import typer

from clp_edge.commands.frame import opened


def run(
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback.")] = False,
) -> None:
    """Say what this machine can run, with the line that installs what is missing."""
    with opened(json=json_output, debug=debug) as ui:
        from clp_edge.doctor import examine

        diagnosis = examine()
        if json_output:
            rows = [vars(row) for row in diagnosis.rows]
            ui.print_json({"ready": diagnosis.ready, "rows": rows})
        else:
            found = [(row.status, row.name, row.detail) for row in diagnosis.rows]
            ui.table("", ("", "what", "found"), found)
            for row in diagnosis.rows:
                if row.cure:
                    ui.result(f"{row.name}: {row.cure}")
        if not diagnosis.ready:
            raise typer.Exit(1)
