"""Every target of every format by its name, its aliases or the runtime's own name of the type.

>>> resolve("gguf-q4").file_suffix
'Q4_K_M'
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from clp_edge.errors import UsageError
from clp_edge.export.base import Format, Target
from clp_edge.registry import FORMATS


def format_of(target: Target) -> Format:
    """The format that writes it."""
    found: Format = FORMATS.load(target.format)
    return found


def _targets() -> Iterator[Target]:
    for row in FORMATS:
        found: Format = FORMATS.load(row.name)
        yield from found.targets()


def all_targets() -> tuple[Target, ...]:
    """Every target that can be asked for, format by format, best quality first."""
    return tuple(_targets())


def resolve(name: str) -> Target:
    """The target of that name, alias or type, any case; UsageError with the nearest."""
    wanted = name.strip().lower()
    by_name = {key: target for target in _targets() for key in (target.name, *target.aliases)}
    if wanted in by_name:
        return by_name[wanted]
    near = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.4)
    nearest = by_name[near[0]].name if near else "gguf-q4_k_m"
    raise UsageError(f"unknown target {name!r}", f"did you mean {nearest}?")
