"""An ending that is one JSON document beside the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from clp_edge.durable import write_text
from clp_edge.pipeline.runner import Ending, Ledger
from clp_edge.pipeline.stage import Context
from clp_edge.records import RecordError, decode, encode

D = TypeVar("D")


@dataclass(frozen=True)
class Done(Generic[D]):
    """A finished command: its document, its folder, and whether it had been run before."""

    document: D
    out: Path
    reused: bool


def document(name: str, kind: type[D], make: Callable[[Context, Ledger], D]) -> Ending[D]:
    """OUT/`name`, a record of `kind`."""

    def write(context: Context, ledger: Ledger) -> tuple[D, list[Path]]:
        made = make(context, ledger)
        path = context.out / name
        write_text(path, encode(made).decode())
        return made, [path]

    def read(out: Path) -> D | None:
        try:
            return decode((out / name).read_bytes(), kind)
        except (OSError, RecordError):
            return None

    return Ending(write, read)
