"""report: the documents of a finished run once more, or two runs side by side."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from clp_edge.commands import options
from clp_edge.commands.frame import opened


def run(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Output folders of clp-edge compress (or their report.json)."),
    ],
    open_page: Annotated[
        bool, typer.Option("--open", help="Open report.html in the browser.")
    ] = False,
    json_output: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Print a run's report and write its documents anew from report.json; two runs side by side.

    Example: clp-edge report ./run-a ./run-b
    """
    with opened(json=json_output, debug=debug) as ui:
        from clp_edge.errors import UsageError
        from clp_edge.records import to_plain
        from clp_edge.report import load_report, write_report

        if open_page and (json_output or len(folders) > 1):
            raise UsageError("--open shows one report", "give one folder, and no --json")
        found = [load_report(folder) for folder in folders]
        if json_output:
            plain = [to_plain(report) for report in found]
            ui.print_json(plain[0] if len(plain) == 1 else plain)
            return
        if len(found) == 1:
            out = folders[0] if folders[0].is_dir() else folders[0].parent
            write_report(found[0], out)
            ui.report(found[0], out)
            if open_page and not webbrowser.open((out / "report.html").resolve().as_uri()):
                ui.warn(f"no browser could be opened; the page is {out / 'report.html'}")
            return
        from clp_edge.report.compare import side_by_side

        header, rows = side_by_side(found, [str(folder) for folder in folders])
        ui.table("", header, rows)
