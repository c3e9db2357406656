"""What every verb stands in: one line for what went wrong, exit codes, torch with a short spin."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from clp_edge.errors import ClpEdgeError
from clp_edge.waiting import spin_briefly

if TYPE_CHECKING:
    from clp_edge.ui import Ui


@contextmanager
def opened(*, json: bool = False, quiet: bool = False, debug: bool = False) -> Iterator[Ui]:
    """The screen of a verb; an error leaves as one line and an exit code."""
    from clp_edge.ui import Ui

    ui = Ui(quiet=quiet, json=json)
    with _Errors(ui, debug):
        yield ui


def command_line() -> str:
    """What was typed, ready to be typed again."""
    return shlex.join(["clp-edge", *sys.argv[1:]])


def import_torch() -> None:
    """Import torch with OpenMP threads that spin briefly while they wait, as every child does.

    What the user has set stays (`clp_edge.waiting` says why and how much). A torch that is loaded
    already, by a program that uses this one as a library, has read its variables and keeps them.
    """
    if "torch" not in sys.modules:
        spin_briefly(os.environ)
        import torch  # noqa: F401


class _Errors:
    """Turns what went wrong into one line and an exit code; a traceback only with --debug."""

    def __init__(self, ui: Ui, debug: bool) -> None:
        self.ui = ui
        self.debug = debug

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (typer.Exit, typer.Abort)):
            return
        if isinstance(error, KeyboardInterrupt):
            self.ui.warn("interrupted; the same command goes on where it stopped")
            self._leave(130, error)
        if self.debug:
            return
        if isinstance(error, ClpEdgeError):
            self.ui.problem(error)
            self._leave(error.exit_code, error)
        if isinstance(error, MemoryError):
            self.ui.problem(
                ClpEdgeError("the machine has too little memory", "take a smaller model or preset")
            )
            self._leave(1, error)
        if isinstance(error, OSError) and error.errno is not None:
            named = f"{error.filename}: " if error.filename else ""
            self.ui.problem(
                ClpEdgeError(f"{named}{os.strerror(error.errno)}", "mend that and run it again")
            )
            self._leave(1, error)
        if isinstance(error, Exception):
            self.ui.problem(
                ClpEdgeError(
                    f"{type(error).__name__}: {error}",
                    "this is a mistake in clp-edge; run again with --debug and report it",
                )
            )
            self._leave(1, error)

    @staticmethod
    def _leave(code: int, error: BaseException) -> NoReturn:
        raise typer.Exit(code) from error
