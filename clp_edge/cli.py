"""The command line: verbs to modules of `commands/`; the only place that exits.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 a file was written but failed verification; 4 a
quality gate that was asked for is not met; 130 interrupted (the same command resumes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import clp_edge
from clp_edge.commands import (
    bench,
    bench_kernels,
    compress,
    doctor,
    evaluate,
    export,
    heal,
    inspect,
    prune,
    report,
    search,
    targets,
)
from clp_edge.commands.frame import opened
from clp_edge.commands.processes import refuse_several

app = typer.Typer(
    name="clp-edge",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Cut the transformer blocks a language model can do without, mend the cut, quantize, "
        "export, prove every file and measure tokens per second before and after.\n\n"
        "Start with: clp-edge compress --target gguf-q4"
    ),
)

VERBS: dict[str, Callable[..., None]] = {
    "compress": compress.run,
    "search": search.run,
    "prune": prune.run,
    "heal": heal.run,
    "export": export.run,
    "eval": evaluate.run,
    "bench": bench.run,
    "bench-kernels": bench_kernels.run,
    "report": report.run,
    "inspect": inspect.run,
    "targets": targets.run,
    "doctor": doctor.run,
}
for name, verb in VERBS.items():
    app.command(name)(verb)


def _version(wanted: bool) -> None:
    if wanted:
        with opened() as ui:
            ui.result(f"clp-edge {clp_edge.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    with opened():
        refuse_several(context.invoked_subcommand)


def main() -> None:
    """The console script."""
    app()
