"""A verb in several processes that torchrun has started: who works, who speaks, how it fails.

    torchrun --nproc-per-node 2 -m clp_edge heal cut --out healed

torchrun ends all processes as soon as one has failed. So the one that fails first speaks, before
it ends, and no other does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from clp_edge.commands.frame import import_torch
from clp_edge.errors import ClpEdgeError, UsageError

if TYPE_CHECKING:
    from clp_edge.heal.ranks import Ranks

TOGETHER = ("heal",)
"""The verbs that several processes can share."""
PATIENCE_S = 10.0
"""How long a process waits to be ended by torchrun after the first has said what is wrong."""


def started(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started together, as torchrun says it; 1 without torchrun.

    >>> started({"WORLD_SIZE": "2", "RANK": "0"}), started({})
    (2, 1)
    """
    said = environment.get("WORLD_SIZE", "")
    return max(1, int(said)) if said.isdecimal() and "RANK" in environment else 1


def refuse_several(verb: str | None) -> None:
    """Raise UsageError for a verb of one process that torchrun has started several times."""
    count = started()
    if count == 1 or verb is None or verb in TOGETHER:
        return
    if os.environ["RANK"] != "0":
        time.sleep(PATIENCE_S)
        raise typer.Exit(UsageError.exit_code)
    raise UsageError(
        f"{verb} is the work of one process, and torchrun (WORLD_SIZE) has started {count}",
        f"run it without torchrun; {', '.join(TOGETHER)} can be shared",
    )


@contextmanager
def together(device: str) -> Iterator[Ranks | None]:
    """This process among those that torchrun has started; None: it is alone.

    Args: device, as --device has it. What fails leaves in one of them as it is, and in the others
    as an exit code without a word.
    """
    if started() == 1:
        yield None
        return
    import_torch()
    import torch

    from clp_edge.heal.ranks import joined

    on = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    with joined(on) as ranks:
        try:
            yield ranks
        except (typer.Exit, typer.Abort):
            raise
        except BaseException as error:
            if ranks.fails_first():
                raise
            code = error.exit_code if isinstance(error, ClpEdgeError) else 1
            raise typer.Exit(code) from error


def threads_each() -> int:
    """The cores of this machine, shared out among its processes."""
    from clp_edge.runtimes import default_threads

    return max(1, default_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
